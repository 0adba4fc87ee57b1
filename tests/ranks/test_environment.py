"""What the environment asks of a run, and what of it is heard."""

from __future__ import annotations

import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tp_grpo.ranks.environment import check, name_the_user
from tp_grpo.ranks.runtime import Runtime


def test_variables_of_accelerate_do_not_change_the_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    runtime = Runtime("fp32", (), str(tmp_path))
    weight = torch.nn.Parameter(torch.ones(1))
    runtime.accelerator.backward(3 * weight.sum())
    assert weight.grad == 3
    assert runtime.accelerator.state.dynamo_plugin.backend.value == "NO"


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("DIFFUSERS_ATTN_BACKEND", "flash", "which is model.attention_backend; unset it"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "tensor or context parallelism"),
    ],
)
def test_what_only_a_config_may_ask_for_is_refused(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check({})
    check({"DIFFUSERS_ATTN_BACKEND": "native", "ACCELERATE_USE_PARALLELISM_CONFIG": "False"})
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} = '{value}' asks for .*{words}"):
        Runtime("fp32", (), str(tmp_path))


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "", "1.5"])
def test_a_launcher_s_number_that_is_none_is_named(name: str, value: str) -> None:
    check({name: " 1"})
    check({name: "-1"})
    with pytest.raises(ValueError, match=rf"{name} = '{value}' must be a whole number; .*unset it"):
        check({name: value})


def test_a_user_id_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with --user 12345."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "")
    name_the_user()
    assert getpass.getuser().startswith("user-")


def test_ranks_that_share_a_gpu_do_not_share_its_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share_gpus: FSDP2 needs a GPU for each rank"):
        Runtime("fp32", (), str(tmp_path), shard=True, share_gpus=True)


def test_a_containers_tf32_is_not_heard() -> None:
    """The variable is read once, as torch starts: another process has it."""
    program = (
        "import torch; from tp_grpo.ranks.runtime import Runtime; "
        "before = torch.backends.cuda.matmul.allow_tf32; Runtime('fp32', (), '.'); "
        "print(before, torch.backends.cuda.matmul.allow_tf32)"
    )
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr
