"""What libraries read from the environment: it must not change what is trained."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping

import torch

# For accelerate, whose variables overrule its arguments; its own FSDP would shard the adapters.
FOR_ACCELERATE = {
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_DYNAMO_BACKEND": "no",
}
# What a variable asks for when it has another value than this, and where that is set here.
REFUSED = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "tensor or context parallelism, not done here"),
    "DIFFUSERS_ATTN_BACKEND": ("native", "an attention kernel, which is model.attention_backend"),
}
# Read as whole numbers by accelerate, torch and MPI's launchers.
NUMBERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *(f"OMPI_COMM_WORLD_{of}" for of in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    *(f"MV2_COMM_WORLD_{of}" for of in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
)


def check(environment: Mapping[str, str]) -> None:
    """What a launcher sets, and what would change a run without a trace in its config.

    Raises ValueError that names the variable.
    """
    for name in NUMBERS:
        if not re.fullmatch(r"-?\d+", value := environment.get(name, "0").strip()):
            raise ValueError(
                f"the environment's {name} = {value!r} must be a whole number; a launcher sets it: "
                "unset it for a run in one process"
            )
    for name, (harmless, asks) in REFUSED.items():
        value = environment.get(name, harmless)
        if value.lower() != harmless:
            raise ValueError(f"the environment's {name} = {value!r} asks for {asks}; unset it")


def full_precision() -> None:
    """fp32 products are fp32's: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, set in some containers, rounds.

    Convolutions keep torch's default, TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False


def name_the_user() -> None:
    """torch asks for the user's name, which the user id of a container may not have."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
