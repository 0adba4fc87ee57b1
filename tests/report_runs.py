"""Run folders as a trainer leaves them, with numbers that are easy to check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PROMPT = "p<1> $\\foo$"  # neither HTML nor mathematics
CONFIG: dict[str, Any] = {
    "run_name": "",
    "epochs": 4,
    "seed": 1,
    "credit": {"name": "turning_point"},
    "sample": {"kind": "sde", "noise_level": 0.7, "window_start": 2, "window_size": 2, "steps": 4}
    | {"groups_per_epoch": 2, "group_size": 3},
    "train": {"inner_epochs": 1, "beta": 0.0},
}
# Three trajectories of two steps: the second has no turning point, the third one of each kind.
LADDER = [[0.0, 0.25, 1.0], [0.5, 0.5, 0.5], [0.75, 0.5, 0.625]]
INCREMENT = [[0.25, 0.75], [0.0, 0.0], [-0.25, 0.125]]
CREDIT = [[0.25, 0.75], [0.0, 0.0], [-0.125, 0.125]]
TURNING = [[False, True], [False, False], [True, True]]
ADVANTAGE = [[1.0, 1.5], [0.0, -0.75], [-1.0, -0.75]]
# Two groups of four, of one image each.
REWARD = [0.25, 1.0, math.nan, 0.5, 0.0, 0.0, 0.0, 0.5]  # of two groups of four
FORK = {
    "fork": torch.tensor([2] * 4 + [0] * 4),
    "fork_sigma": torch.tensor([0.625] * 4 + [1.0] * 4),
    "fork_spread": torch.tensor([0.125] * 4 + [0.0625] * 4),
}


def make(folder: Path, *, epochs: int = 4, lift: float = 0.0, **changes: Any) -> Path:
    """A run whose reward is 0.5, 0.6, ... + `lift`, evaluated before and after all epochs.

    Ladders after every epoch; `changes`: fields of the config, "credit" that credit's name.
    """
    folder.mkdir(parents=True)
    changes["credit"] = {"name": changes.get("credit", "turning_point")}
    config = CONFIG | {"run_name": folder.name, "epochs": epochs} | changes
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    lines = [train_line(epoch, lift) for epoch in range(1, epochs + 1)]
    lines.insert(0, eval_line(0, 0.25))
    lines.append(eval_line(epochs, 0.5 + lift))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation(folder, 0, [0.0, 1.0, 0.5])
    evaluation(folder, epochs, [0.2, 0.4, 0.1])
    for epoch in range(1, epochs + 1):
        ladders(folder, epoch, torch.full((3, 3, 8, 8, 3), 40 * epoch % 256).byte())
    return folder


def train_line(epoch: int, lift: float = 0.0) -> dict[str, Any]:
    reward = 0.4 + 0.1 * epoch + lift
    line: dict[str, Any] = {"kind": "train", "epoch": epoch}
    line |= {"reward": reward, "reward_se": 0.05, "shapes": reward, "shapes_se": 0.05}
    line |= {"shapes/exact": 0.1 * epoch, "shapes/exact_se": None}
    line |= {"loss": 0.001, "policy": 0.001, "kl": 0.0}
    line |= {"turning_2": 0.25 * (epoch % 2), "turning_3": 0.5, "zero_std": 0.125, "group_std": 0.3}
    line |= {"clip_high": 0.1, "clip_low": 0.2, "failed": 0.0}
    line |= {"updates": 2 * epoch, "nfe": 48 * epoch}
    return line | {"seconds": 10.0, "seconds_rollout": 7.0, "seconds_update": 3.0}


def eval_line(epoch: int, total: float) -> dict[str, Any]:
    scores = {"total": total, "total_se": 0.02, "shapes": total, "shapes_se": 0.02}
    scores |= {"shapes/exact": total / 2, "shapes/exact_se": 0.01}
    return {"kind": "eval", "epoch": epoch, **scores, "seconds": 5.0}


def evaluation(
    folder: Path, epoch: int, exact: list[float], prompts: Sequence[str] = (PROMPT, "p2", "p3")
) -> None:
    (folder / "evaluations").mkdir(exist_ok=True)
    tensors = {
        "total": torch.tensor(exact),
        "shapes/exact": torch.tensor(exact),
        "images": torch.zeros(2, 4, 4, 3).byte(),
    }
    path = folder / "evaluations" / f"epoch-{epoch}.safetensors"
    save_file(tensors, path, {"prompts": json.dumps(list(prompts))})


def ladders(folder: Path, epoch: int, images: Tensor) -> None:
    """The group of three above, with these completions (3, 3, H, W, 3) uint8."""
    kept = {
        "ladder": LADDER,
        "increment": INCREMENT,
        "reward": CREDIT,
        "advantage": ADVANTAGE,
        "group_id": [7, 7, 7],
    }
    tensors = {name: torch.tensor(values) for name, values in kept.items()}
    save_ladders(folder, epoch, tensors | {"turning": torch.tensor(TURNING), "images": images})


def save_ladders(folder: Path, epoch: int, tensors: dict[str, Tensor]) -> None:
    (folder / "ladders").mkdir(exist_ok=True)
    prompts = json.dumps([PROMPT] * len(tensors["images"]))
    save_file(tensors, folder / "ladders" / f"epoch-{epoch}.safetensors", {"prompts": prompts})


def one_image(fork: dict[str, Tensor] = FORK) -> dict[str, Tensor]:
    """The kept tensors of samples with these rewards, and the forks of their groups."""
    reward = torch.tensor(REWARD)[:, None]
    kept = {"ladder": reward, "reward": reward, "increment": reward, "states": torch.tensor([0])}
    kept = {name: value.clone() for name, value in kept.items()}
    kept |= {"advantage": torch.tensor([-1.0, 1.5, 0.0, 0.0, -1.0, 0.0, 0.0, 1.0])[:, None]}
    kept |= {"turning": torch.zeros(8, 1).bool(), "group_id": torch.tensor([7] * 4 + [9] * 4)}
    return kept | {"images": torch.zeros(8, 1, 8, 8, 3).byte()} | fork


def shared(folder: Path, fork: dict[str, Tensor] = FORK) -> Path:
    sample = CONFIG["sample"] | {"groups": "shared_state", "group_size": 4}
    run = make(folder, epochs=1, credit="terminal", sample=sample, objective={"name": "matching"})
    save_ladders(run, 1, one_image(fork))
    return run
