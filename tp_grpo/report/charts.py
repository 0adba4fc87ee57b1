"""Which figures are drawn of which metrics, and the numbers that travel in the page."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tp_grpo.report.data import AXES, Run, Table, rank

HELD_OUT, TRAINING, HEALTH, COST = "Held-out prompts", "Training prompts", "Health", "Cost"
SECTIONS = {
    HELD_OUT: "ODE samples of the averaged weights, the same prompts and noise each time; bars are standard errors "
    "over prompts.",
    TRAINING: "Stochastic samples of the policy being trained; from 30 epochs on, thick lines are running means. Bars, "
    "or the shade along a line, are the standard error of an epoch over its prompts.",
    HEALTH: "What tells a run that learns from one that is about to break.",
    COST: "Seconds of an epoch, by phase.",
}
KNOWN = (
    ("KL to the frozen model", ("kl",)),
    ("Approximate KL of an update", ("approx_kl",)),
    ("Share of ratios clipped", ("clip_high", "clip_low")),
    (
        "Ratio's distance from 1: before and after the epoch's updates",
        ("ratio_dev", "ratio_dev_moved"),
    ),
    ("Std of the reward within groups", ("group_std",)),
    ("Share of groups with zero std", ("zero_std",)),
    ("Gradient norm", ("grad_norm",)),
    ("Loss", ("loss", "policy")),
    ("Share of images without a score", ("failed",)),
    ("Updates left out", ("skipped",)),
)
NOT_DRAWN = {"epoch", "nfe", "seconds_all", *AXES}


@dataclass(frozen=True)
class Chart:
    """Lines of the same unit: `keys` are columns of the runs' `table` ("train" or "eval")."""

    section: str
    title: str
    table: str
    keys: tuple[str, ...]


def charts(runs: list[Run]) -> list[Chart]:
    """The figures for which some run has numbers, in the page's order.

    Left out are what repeats another line (the total of a single scorer) and the health of `silent`.
    """
    phases = tuple(
        name
        for name in _names(runs, "train")
        if name.startswith("seconds_") and name not in NOT_DRAWN
    )
    found = [Chart(HELD_OUT, name, "eval", (name,)) for name in _scores(runs, "eval")]
    found += [Chart(TRAINING, name, "train", (name,)) for name in _scores(runs, "train")]
    found += [chart for chart in _health(runs) if not _zero(runs, chart)]
    return found + ([Chart(COST, "Seconds an epoch", "train", phases)] if phases else [])


def silent(runs: list[Run]) -> list[str]:
    """Titles of the health figures that would show nothing but zeros."""
    return [chart.title for chart in _health(runs) if _zero(runs, chart)]


def _health(runs: list[Run]) -> list[Chart]:
    """Those of KNOWN, then the metrics that no figure knows."""
    train, scores = (
        _names(runs, "train"),
        {name for run in runs for name in run.train if _is_score(run, "train", name)},
    )
    known = [
        (title, _distinct(runs, "train", [key for key in keys if key in train]))
        for title, keys in KNOWN
    ]
    elsewhere = {key for _, keys in KNOWN for key in keys} | NOT_DRAWN | scores
    rest = [name for name in train if name.removesuffix("_se") not in elsewhere]
    alone = [
        name
        for name in rest
        if not name.startswith(("seconds_", "turning_", "evaluations_", "images_"))
    ]
    found = [Chart(HEALTH, title, "train", tuple(keys)) for title, keys in known if keys]
    return found + [Chart(HEALTH, name.replace("_", " "), "train", (name,)) for name in alone]


def _scores(runs: list[Run], table: str) -> list[str]:
    names = [
        name for name in _names(runs, table) if any(_is_score(run, table, name) for run in runs)
    ]
    return _distinct(runs, table, sorted(names, key=lambda name: (name != "reward", rank(name))))


def _is_score(run: Run, table: str, name: str) -> bool:
    """Scores have a standard error, if only an unknown one; a scorer's extras are named "scorer/extra"."""
    return f"{name}_se" in getattr(run, table) or (
        not name.endswith("_se") and (name == "reward" or "/" in name)
    )


def _zero(runs: list[Run], chart: Chart) -> bool:
    return not any(value for run in runs for key in chart.keys for value in run.train.get(key, []))


def _distinct(runs: list[Run], table: str, names: list[str]) -> list[str]:
    """Without those that have, in every run, the values of an earlier one."""
    values = [[getattr(run, table).get(name) for run in runs] for name in names]
    return [name for i, name in enumerate(names) if values[i] not in values[:i]]


def payload(runs: list[Run], bands: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's script draws: {"axes", "charts", "runs", "bands"}; numbers have five digits."""
    drawn = charts(runs)
    needed = {key for chart in drawn for key in chart.keys} | {*AXES, "epoch"}
    return {
        "axes": AXES,
        "charts": [asdict(chart) for chart in drawn],
        "runs": [
            {
                "name": run.name,
                "train": _rounded(run.train, needed),
                "eval": _rounded(run.eval, needed),
            }
            for run in runs
        ],
        "bands": [
            {name: band[name] for name in ("label", "run", "train", "eval")} for band in bands
        ],
    }


def turning_points(run: Run, most: int = 10) -> dict[str, Any] | None:
    """Share of trajectories with a turning point at each step, averaged over at most `most` spans of epochs.

    {"steps": [index], "spans": ["1-7"], "shares": [a step: [a span]]}; None for a credit that knows no turning points.
    """
    steps = sorted(int(name.removeprefix("turning_")) for name in run.train if _is_turning(name))
    epochs = run.train.get("epoch", [])
    if not any(value for step in steps for value in run.train[f"turning_{step}"]):
        return None
    width = -(-len(epochs) // most)
    starts = range(0, len(epochs), width)
    spans = [(epochs[start], epochs[min(start + width, len(epochs)) - 1]) for start in starts]
    shares = []
    for step in steps:
        column = run.train[f"turning_{step}"]
        shares.append(
            [statistics.mean(v or 0.0 for v in column[start : start + width]) for start in starts]
        )
    return {
        "steps": steps,
        "spans": [f"{a}" if a == b else f"{a}–{b}" for a, b in spans],
        "shares": shares,
    }


def phases(run: Run) -> list[dict[str, Any]]:
    """Of an epoch by phase, in the epoch's order: median seconds, their share, model evaluations and images decoded.

    {"phase", "seconds", "share", "evaluations", "images"}; a count is None where none is known.
    """
    counts = _evaluations(run)
    rows: list[dict[str, Any]] = []
    for name in (
        name for name in run.train if name.startswith("seconds_") and name != "seconds_all"
    ):
        phase = name.removeprefix("seconds_")
        evaluations = _median(run, f"evaluations_{phase}")
        row = {
            "phase": phase,
            "seconds": _median(run, name),
            "images": _median(run, f"images_{phase}"),
        }
        rows.append(
            row | {"evaluations": counts.get(phase) if evaluations is None else evaluations}
        )
    whole = sum(row["seconds"] for row in rows) or 1.0
    return [row | {"share": row["seconds"] / whole} for row in rows]


def _evaluations(run: Run) -> dict[str, float | None]:
    """Rows through the model in an epoch of a run that did not count them by phase.

    Those sampled are from the sum that was logged, those trained on from the settings (twice with a KL term).
    """
    sample, train = run.config["sample"], run.config.get("train", {})
    steps = sample["groups_per_epoch"] * sample["group_size"] * sample["window_size"]
    trained = steps * train.get("inner_epochs", 1) * (2 if train.get("beta") else 1)
    sampled = [value for value in run.train.get("evaluations", []) if value is not None]
    return {"rollout": sampled[-1] / len(sampled) if sampled else None, "update": trained}


def _median(run: Run, name: str) -> float | None:
    known = [value for value in run.train.get(name, []) if value is not None]
    return statistics.median(known) if known else None


def _names(runs: list[Run], table: str) -> list[str]:
    tables = [getattr(run, table) for run in runs]
    return list(
        dict.fromkeys(
            name
            for columns in tables
            for name, values in columns.items()
            if any(value is not None for value in values)
        )
    )


def _is_turning(name: str) -> bool:
    return name.startswith("turning_") and name.removeprefix("turning_").isdigit()


def _rounded(table: Table, needed: set[str]) -> Table:
    return {
        name: [digits(value) for value in column]
        for name, column in table.items()
        if name in needed or name.removesuffix("_se") in needed
    }


def digits(value: float | None) -> float | None:
    """Five significant digits; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
