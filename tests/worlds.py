"""Runs on several ranks of this machine, one after another: tests/worlds.py '[{"name", "ranks"}]'.

The ranks are forked, so that the libraries load once for all of them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import peft
import torch
import transformers

from config import tp_grpo
from tp_grpo.trainer import Trainer


def main(runs: list[dict[str, Any]]) -> int:
    """A run: name, ranks, fields {dotted name: value}, env, sharded or not; scorer and options."""
    torch.set_num_threads(1)
    for library, name in (
        (diffusers, "StableDiffusion3Pipeline"),
        (peft, "LoraConfig"),
        (transformers, "CLIPTokenizer"),
    ):
        getattr(library, name)  # imports what it needs, here rather than in each rank
    return max(launch(run) for run in runs)


def launch(run: dict[str, Any]) -> int:
    port = _free_port()
    ranks = [_fork(run, rank, port) for rank in range(run["ranks"])]
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in ranks)


def _fork(run: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(run.get("env", {}), ACCELERATE_USE_CPU="true")
        if run["ranks"] > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(run["ranks"]))
            os.environ.update(
                LOCAL_WORLD_SIZE=str(run["ranks"]), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )
        train(run)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent has set up is the parent's to take down


def train(run: dict[str, Any]) -> None:
    config = tp_grpo.get_config("shapes_smoke")
    config.run_name = run["name"]
    config.update_from_flattened_dict(run["fields"])
    if "scorer" in run:
        with config.unlocked():
            del config.rewards.scorers["shapes"]
            config.rewards.scorers[run["scorer"]] = run.get("options", 1.0)
    trainer = Trainer(config)
    shares = [
        hasattr(parameter, "to_local") for parameter in trainer.backbone.transformer.parameters()
    ]
    assert any(shares) == run.get("sharded", False) and not all(shares)
    trainer.run()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
