"""Two processes over gloo give what one gives: ladders, evaluation, and nearly the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {"eval.prompts": 7, "sample.batch_size": 2, "train.beta": 1e-3, "epochs": 1, "eval.images": 24}


def start(processes: int, out: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "scripts/train.py"]
    command += [f"--config={config}", f"--config.output_dir={out}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def launch(processes: int, out: Path) -> Path:
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    run_name = f"--config.run_name=ranks-{processes}"
    done = start(processes, out, "config/tp_grpo.py:shapes_smoke", run_name, *fields)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / f"ranks-{processes}"


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    one, two = launch(1, tmp_path), launch(2, tmp_path)
    for name, tolerance in (("ladders/epoch-1", 2e-2), ("evaluations/epoch-0", 2e-2), ("evaluations/epoch-1", 5e-2)):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (one, two))
        for key in ("ladder", "group_id", "total"):
            if key in first:
                torch.testing.assert_close(first[key], second[key], rtol=0, atol=tolerance)
        assert first["images"].shape == second["images"].shape
        assert (first["images"].float() - second["images"].float()).abs().mean() < 1
    first, second = (load_file(folder / "checkpoints/epoch-1/trainable.safetensors") for folder in (one, two))
    moved = [name for name in first if "lora_B" in name]
    distance = sum((first[n] - second[n]).norm() ** 2 for n in moved) ** 0.5
    assert distance / sum(first[n].norm() ** 2 for n in moved) ** 0.5 < 5e-2


CONFIG = """
from ml_collections import ConfigDict
from config import tp_grpo

def get_config(error):
    config = tp_grpo.get_config("shapes_smoke")
    config.update_from_flattened_dict({"epochs": 1, "sample.batch_size": 2, "rewards.max_failed": 0.6})
    with config.unlocked():
        scorers = {"tests.scorers:FailsOnRank": {"rank": 1, "error": error}}
        config.rewards.scorers = ConfigDict(scorers, allow_dotted_keys=True)
    return config
"""


def test_a_scorer_that_fails_on_one_rank_stops_both_or_leaves_both_going(tmp_path: Path) -> None:
    config = tmp_path / "one_rank.py"
    config.write_text(CONFIG)
    programming = start(2, tmp_path / "a", f"{config}:TypeError")
    output = programming.stdout + programming.stderr
    assert programming.returncode != 0
    assert output.count("error: the scorer 'tests.scorers:FailsOnRank' failed with TypeError: only here") == 2, output
    data = start(2, tmp_path / "b", f"{config}:RuntimeError")
    assert data.returncode == 0, data.stdout + data.stderr
    (line,) = [
        json.loads(line)
        for line in next((tmp_path / "b").rglob("metrics.jsonl")).read_text().splitlines()
        if '"train"' in line
    ]
    assert line["failed"] == 0.5 and 0 < line["tests.scorers:FailsOnRank/dark"] < 1
