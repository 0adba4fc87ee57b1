"""A scorer that compares a prompt's images gives one run the same scores in every world."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.ranks.test_ranks import ENVIRONMENT, ROOT, distance

# 12 images: two ranks have 6 each, which ends in the middle of the second group.
FIELDS = {
    "epochs": 2,
    "model.height": 32,
    "model.width": 32,
    "sample.steps": 3,
    "sample.groups_per_epoch": 3,
    "sample.group_size": 4,
    "train.updates_per_epoch": 1,
    "eval.every": 2,
    "eval.steps": 2,
    "eval.prompts": 3,
    "eval.members": 4,
    "eval.images": 5,
    "tracking.groups": 3,
    "tracking.images_every": 1,
}
# name -> (processes, batch size in training, in evaluations)
WORLDS = {"1x4": (1, 4, 12), "1x1": (1, 1, 5), "2x3": (2, 3, 3)}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{world: the folder of its run}; the scorer refuses groups of another size than 4."""
    out = tmp_path_factory.mktemp("worlds")
    jobs = [
        {
            "name": name,
            "ranks": ranks,
            "scorer": "tests.scorers:Contrast",
            "options": {"weight": 1.0, "size": 4},
            "fields": {
                **FIELDS,
                "sample.batch_size": batch,
                "eval.batch_size": evaluated,
                "output_dir": str(out),
            },
        }
        for name, (ranks, batch, evaluated) in WORLDS.items()
    ]
    command = [sys.executable, "tests/worlds.py", json.dumps(jobs)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: out / name for name in WORLDS}


def read(folder: Path, name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1x1", "2x3"])
def test_every_world_compares_the_same_images(worlds: dict[str, Path], name: str) -> None:
    for epoch, tolerance in ((1, 1e-5), (2, 1e-3)):
        first, second = (read(worlds[w], f"ladders/epoch-{epoch}") for w in ("1x4", name))
        assert first["ladder"].shape == (12, 3) and first["ladder"].std() > 1e-3
        means = first["ladder"].reshape(3, 4, 3).mean(1)
        torch.testing.assert_close(means, torch.zeros(3, 3), rtol=0, atol=1e-6)
        torch.testing.assert_close(first["ladder"], second["ladder"], rtol=0, atol=tolerance)
        assert (first["group_id"] == second["group_id"]).all()
    for epoch, tolerance in ((0, 1e-5), (2, 1e-3)):
        first, second = (read(worlds[w], f"evaluations/epoch-{epoch}") for w in ("1x4", name))
        assert len(first["total"]) == 12 and first["total"].std() > 1e-3
        torch.testing.assert_close(first["total"], second["total"], rtol=0, atol=tolerance)
        assert first["images"].shape == second["images"].shape == (5, 32, 32, 3)
        assert (first["images"].int() - second["images"].int()).abs().max() <= 1
    first, second = (read(worlds[w], "checkpoints/epoch-2/trainable") for w in ("1x4", name))
    assert distance(first, second) < 1e-2, (
        "a pixel rounded otherwise counts: brightness varies little"
    )
