"""Trajectories as filmstrips: the completions, the ladder under them, what each step earned.

A sample with one image, without a ladder, is a row of its own; a group of such is sorted by reward.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from tp_grpo.observe.tracking import by_epoch, epoch_of
from tp_grpo.report.data import picture, tensors

BUDGET = 5_000_000  # characters of pictures in a page


def trajectories(folder: Path, budget: float = BUDGET) -> list[dict[str, Any]]:
    """The kept groups whose pictures fit in `budget` characters: newest epoch, oldest, others.

    A group is {"epoch", "prompt", "rows", "left_out", "states", "single", "fork"}, newest epoch
    first; a row {"member", "reward", "turns", "frames", "steps"}. A frame is a completion {"image",
    "words", "reward", "x", "y"}, a step {"increment", "long_term", "credit", "advantage",
    "turning", "x", "y"}; x and y are percent of the ladder's box, y from above. `states`: the
    stochastic steps before each completion if some state has none, else None. `single`: rows have
    one frame each, and the highest reward is first. `fork`: of a shared state, see `_fork`.
    """
    paths = by_epoch(folder / "ladders")
    shown: list[dict[str, Any]] = []
    left, cost = budget, 0
    for path in [*paths[-1:], *paths[:-1][:1], *reversed(paths[1:-1])]:
        if cost > left:  # an epoch costs about what the last one did
            break
        groups = _groups(path, left)
        cost = sum(_cost(row) for group in groups for row in group["rows"])
        left -= cost
        shown += groups
    return sorted(shown, key=lambda group: -group["epoch"])


def _cost(row: dict[str, Any]) -> int:
    return sum(len(frame["image"]) for frame in row["frames"])


def _groups(path: Path, budget: float) -> list[dict[str, Any]]:
    """An epoch's groups, each with the same share of the budget, at least one row."""
    kept, prompts = tensors(path)
    ids = kept["group_id"][: len(kept["images"])].tolist()
    groups = []
    for group_id in dict.fromkeys(ids):
        members = [i for i, other in enumerate(ids) if other == group_id]
        ladder = kept["ladder"][members]
        finite = ladder[ladder.isfinite()].tolist() or [0.0]
        rows: list[dict[str, Any]] = []
        spent = 0
        for member, i in enumerate(members):
            if spent > budget / len(set(ids)):
                break
            rows.append({"member": member} | _row(kept, i, min(finite), max(finite)))
            spent += _cost(rows[-1])
        single = ladder.shape[1] == 1
        if single:
            rows.sort(key=lambda row: math.inf if math.isnan(row["reward"]) else -row["reward"])
        group = {"epoch": epoch_of(path), "prompt": prompts[ids.index(group_id)], "rows": rows}
        group |= {"left_out": len(members) - len(rows), "states": _partial(kept), "single": single}
        groups.append(group | {"fork": _fork(kept, members, min(finite), max(finite))})
    return groups


def _fork(
    kept: dict[str, Tensor], members: list[int], low: float, high: float
) -> dict[str, Any] | None:
    """{"step", "sigma", "spread", "count", "value", "std", "y"} of a group that shares a state.

    spread: the step's running one. value, std: mean, which is the value of the state, and
    population std of the `count` known rewards, y the value's place. NaN for what is unknown, None
    where the group shares no state.
    """
    if "fork" not in kept:
        return None
    rewards = kept["ladder"][members, -1].double()
    known = rewards[rewards.isfinite()]
    value = float(known.mean())

    def at_step(name: str) -> float:
        return float(kept[name][members[0]]) if name in kept else math.nan

    return {
        "step": int(kept["fork"][members[0]]),
        "sigma": at_step("fork_sigma"),
        "spread": at_step("fork_spread"),
        "count": len(known),
        "value": value,
        "std": float(known.std(unbiased=False)),
        "y": _height(value, low, high),
    }


def _partial(kept: dict[str, Tensor]) -> list[int] | None:
    """The states of the ladder's columns, if there are several but not one for each state."""
    states: list[int] = kept["states"].tolist() if "states" in kept else []
    return states if 1 < len(states) <= kept["reward"].shape[1] else None


def _words(kept: dict[str, Tensor], j: int) -> str:
    """What column j of the ladder is the reward of; older files do not know their states."""
    if kept["ladder"].shape[1] == 1:
        return "Image"
    state = int(kept["states"][j]) if "states" in kept else j
    if state == 0:
        return "Completion by the ODE alone"
    if "states" not in kept:
        return f"Completion {j}"
    return f"Completion after {state} stochastic step{'' if state == 1 else 's'}"


def _row(kept: dict[str, Tensor], i: int, low: float, high: float) -> dict[str, Any]:
    ladder, images = kept["ladder"][i].tolist(), kept["images"][i]
    frames = []
    for j, (image, reward) in enumerate(zip(images, ladder, strict=True)):
        place = {"x": 100 * (j + 0.5) / len(ladder), "y": _height(reward, low, high)}
        frames.append({"image": picture(image), "words": _words(kept, j), "reward": reward} | place)
    steps = [_step(kept, i, k, frames) for k in range(kept["reward"].shape[1])]
    turns = sum(bool(step["turning"]) for step in steps)
    return {"reward": ladder[-1], "turns": turns, "frames": frames, "steps": steps}


def _step(kept: dict[str, Tensor], i: int, k: int, frames: list[dict[str, Any]]) -> dict[str, Any]:
    """Long-term reward and place on the ladder need a ladder with an entry for every state."""
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
    """The kind of a turning point with that credit: "good", "bad" or "even"."""
    if credit == 0:
        return "even"
    return "good" if credit > 0 else "bad"


def _height(reward: float, low: float, high: float) -> float:
    """Percent from above, with margins of an eighth."""
    if not math.isfinite(reward) or high == low:
        return 50.0
    return 87.5 - 75 * (reward - low) / (high - low)
