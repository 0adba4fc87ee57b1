"""No world changes a run: 1, 2 and 4 processes over gloo, batches of 1, 3, 8, DDP and FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.faults import runs
from tp_grpo.store.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}
# 24 images an update; 7 evaluation prompts do not split over the ranks.
FIELDS = {
    "epochs": 3,
    "model.height": 32,
    "model.width": 32,
    "sample.steps": 3,
    "sample.groups_per_epoch": 6,
    "sample.group_size": 8,
    "eval.every": 3,
    "eval.steps": 2,
    "eval.prompts": 7,
    "eval.images": 7,
    "tracking.groups": 6,
}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# name -> (processes, batch size, environment)
WORLDS: dict[str, tuple[int, int, dict[str, str]]] = {
    "1x8": (1, 8, {}),
    "1x1": (1, 1, {}),
    "2x3": (2, 3, {}),
    "4x3": (4, 3, {}),
    "fsdp2": (2, 3, FSDP2),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{world: the folder of its run}. The reward is smooth, for the embedded one has thresholds."""
    out = tmp_path_factory.mktemp("worlds")
    jobs = [
        {
            "name": name,
            "ranks": ranks,
            "env": env,
            "sharded": env is FSDP2,
            "scorer": "tests.scorers:Brightness",
            "fields": {**FIELDS, "sample.batch_size": batch, "output_dir": str(out)},
        }
        for name, (ranks, batch, env) in WORLDS.items()
    ]
    command = [sys.executable, "tests/worlds.py", json.dumps(jobs)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: out / name for name in WORLDS}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Of the second half of each adapter, which begins at 0, relative to how far it has come."""
    assert first.keys() == second.keys()
    moved = [name for name in first if "lora_B" in name]
    apart = sum(float((first[name] - second[name]).square().sum()) for name in moved)
    return float((apart / sum(float(first[name].square().sum()) for name in moved)) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WORLDS if name != "1x8"])
def test_every_world_makes_the_same_run(worlds: dict[str, Path], name: str) -> None:
    first, second = (
        load_file(worlds[world] / "ladders/epoch-1.safetensors") for world in ("1x8", name)
    )
    assert (
        first["ladder"].shape == (48, 3) and first["turning"].any() and not first["turning"].all()
    )
    torch.testing.assert_close(first["ladder"], second["ladder"], rtol=0, atol=1e-5)
    for key in ("turning", "group_id"):
        assert (first[key] == second[key]).all(), key
    assert (first["images"].int() - second["images"].int()).abs().max() <= 1
    for epoch, tolerance in ((0, 1e-5), (3, 1e-4)):
        first, second = (
            load_file(worlds[w] / f"evaluations/epoch-{epoch}.safetensors") for w in ("1x8", name)
        )
        assert len(first["images"]) == len(second["images"]) == 7
        torch.testing.assert_close(first["total"], second["total"], rtol=0, atol=tolerance)
    first, second = (
        load_file(worlds[w] / "checkpoints/epoch-3/trainable.safetensors") for w in ("1x8", name)
    )
    assert distance(first, second) < 1e-3


@pytest.mark.slow
def test_ddp_and_fsdp2_agree(worlds: dict[str, Path]) -> None:
    ddp, fsdp2 = (
        load_file(worlds[w] / "checkpoints/epoch-3/trainable.safetensors") for w in ("2x3", "fsdp2")
    )
    assert distance(ddp, fsdp2) < 1e-5


CONFIG = """
from ml_collections import ConfigDict
from config import tp_grpo

def get_config(error):
    config = tp_grpo.get_config("shapes_smoke")
    config.rewards.max_failed = 0.6
    with config.unlocked():
        scorers = {"tests.scorers:FailsOnRank": {"rank": 1, "error": error}}
        config.rewards.scorers = ConfigDict(scorers, allow_dotted_keys=True)
    return config
"""


def start(name: str, error: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of two ranks; on the second the scorer fails with that error."""
    (folder / "one_rank.py").write_text(CONFIG)
    config = f"--config={folder / 'one_rank.py'}:{error}"
    processes = runs.start(folder, name, {"epochs": 1, **runs.PAIR}, ranks=2, config=config)
    return [process.wait() for process in processes]


def test_a_scorer_that_has_a_bug_on_one_rank_stops_both(tmp_path: Path) -> None:
    for code, output in start("bug", "TypeError", tmp_path):
        assert code == 3, output
        failure = "the scorer 'tests.scorers:FailsOnRank' failed with TypeError: only here"
        assert output.count(f"error: {failure}") == 1


def test_a_scorer_that_fails_on_one_rank_s_images_leaves_both_running(tmp_path: Path) -> None:
    ended = start("data", "RuntimeError", tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    lines = read_lines(tmp_path / "data" / "metrics.jsonl")
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert line["failed"] == 0.5
    assert 0 < line["tests.scorers:FailsOnRank/dark"] < 1
