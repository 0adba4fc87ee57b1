"""What libraries read from the environment: it must not change what is trained."""

from __future__ import annotations

import getpass
import os
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


def check(environment: Mapping[str, str]) -> None:
    """Raises ValueError for a variable that would change a run without a trace in its config."""
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
