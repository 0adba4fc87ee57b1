"""Trajectories as filmstrips: the completions, the ladder under them, and what each step earned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from tp_grpo.report.data import by_epoch, epoch_of, picture, tensors

BUDGET = 5_000_000  # characters of pictures in a page


def trajectories(folder: Path, budget: float = BUDGET) -> list[dict[str, Any]]:
    """The kept groups, as many as `budget` characters of pictures allow: the newest epoch, the oldest, then the others.

    A group is {"epoch", "prompt", "rows", "left_out", "states"}, newest epoch first; a row {"member", "reward",
    "turns", "frames", "steps"}. A frame is a completion {"image", "words", "reward", "x", "y"}, a step {"increment",
    "long_term", "credit", "advantage", "turning", "x", "y"}; x and y are percent of the ladder's box, y from above.
    `states` are the stochastic steps before each completion where some state has none, else None.
    """
    paths = by_epoch(folder / "ladders")
    found: list[dict[str, Any]] = []
    left, cost = budget, 0.0
    for path in [*paths[-1:], *paths[:-1][:1], *reversed(paths[1:-1])]:
        if cost > left:  # what the last epoch took is what this one would take
            break
        groups = _groups(path, left)
        cost = sum(
            len(frame["image"])
            for group in groups
            for row in group["rows"]
            for frame in row["frames"]
        )
        left -= cost
        found += groups
    return sorted(found, key=lambda group: -group["epoch"])


def _groups(path: Path, budget: float) -> list[dict[str, Any]]:
    """The groups of one epoch, each with the same share of the budget, at least one row."""
    kept, prompts = tensors(path)
    ids = kept["group_id"][: len(kept["images"])].tolist()
    groups = []
    for group_id in dict.fromkeys(ids):
        members = [i for i, other in enumerate(ids) if other == group_id]
        finite = [v for i in members for v in kept["ladder"][i].tolist() if math.isfinite(v)] or [
            0.0
        ]
        rows: list[dict[str, Any]] = []
        spent = 0
        for member, i in enumerate(members):
            if spent > budget / len(set(ids)):
                break
            rows.append({"member": member} | _row(kept, i, (min(finite), max(finite))))
            spent += sum(len(frame["image"]) for frame in rows[-1]["frames"])
        left_out = len(members) - len(rows)
        group = {"epoch": epoch_of(path), "prompt": prompts[ids.index(group_id)], "rows": rows}
        groups.append(group | {"left_out": left_out, "states": _partial(kept)})
    return groups


def _partial(kept: dict[str, Tensor]) -> list[int] | None:
    """The states of the ladder's columns where there are several and some state of the window is left out."""
    states: list[int] = kept["states"].tolist() if "states" in kept else []
    return states if 1 < len(states) <= kept["reward"].shape[1] else None


def _words(kept: dict[str, Tensor], j: int) -> str:
    """What the ladder's column j is the reward of; a file without states does not say how many steps came before."""
    if kept["ladder"].shape[1] == 1:
        return "The trajectory's image"
    state = int(kept["states"][j]) if "states" in kept else j
    if state == 0:
        return "Completion by the ODE alone"
    if "states" not in kept:
        return f"Completion {j}"
    return f"Completion after {state} stochastic step{'' if state == 1 else 's'}"


def _row(kept: dict[str, Tensor], i: int, span: tuple[float, float]) -> dict[str, Any]:
    ladder = kept["ladder"][i].tolist()
    frames = [
        {"image": picture(image), "words": _words(kept, j), "reward": reward}
        | {"x": 100 * (j + 0.5) / len(ladder), "y": _height(reward, span)}
        for j, (image, reward) in enumerate(zip(kept["images"][i], ladder, strict=True))
    ]
    steps = [_step(kept, i, k, frames) for k in range(kept["reward"].shape[1])]
    return {
        "reward": ladder[-1],
        "turns": sum(bool(step["turning"]) for step in steps),
        "frames": frames,
        "steps": steps,
    }


def _step(kept: dict[str, Tensor], i: int, k: int, frames: list[dict[str, Any]]) -> dict[str, Any]:
    """A ladder without an entry for every state cannot say what each step added in the long term, nor where it was."""
    count = kept["reward"].shape[1]
    whole = len(frames) == count + 1
    credit = kept["reward"][i, k].item()
    place = {"x": 100 * (k + 0.5) / count, "y": 50.0}
    if whole:
        place = {axis: (frames[k][axis] + frames[k + 1][axis]) / 2 for axis in ("x", "y")}
    return {
        "increment": kept["increment"][i, k].item() if len(frames) > 1 else None,
        "long_term": frames[-1]["reward"] - frames[k]["reward"] if whole else None,
        "credit": credit,
        "advantage": kept["advantage"][i, k].item(),
        "turning": turn(credit) if kept["turning"][i, k] else "",
    } | place


def turn(credit: float) -> str:
    """What a turning point with that credit is: "good", "bad" or "even"."""
    if credit == 0:
        return "even"
    return "good" if credit > 0 else "bad"


def _height(reward: float, span: tuple[float, float]) -> float:
    """Percent from above, the margins an eighth."""
    low, high = span
    if not math.isfinite(reward) or high == low:
        return 50.0
    return 87.5 - 75 * (reward - low) / (high - low)
