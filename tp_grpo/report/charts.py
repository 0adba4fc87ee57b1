"""Which figures are drawn of which metrics, and the numbers that the page contains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tp_grpo.report.data import AXES, Run, Table, rank

HELD_OUT, TRAINING, HEALTH, COST = "Held-out prompts", "Training prompts", "Health", "Cost"
SECTIONS = {
    HELD_OUT: "ODE samples of the averaged weights, the same prompts and noise each time; bars are "
    "standard errors over prompts.",
    TRAINING: "Stochastic samples of the policy being trained; from 30 epochs on, thick lines are "
    "running means. Bars, or the shade along a line, are the standard error of an epoch over its "
    "prompts.",
    HEALTH: "Signs that tell a run that learns from one that is about to break.",
    COST: "Seconds of an epoch, by phase.",
}
RATIOS = "Ratio's distance from 1: before and after the epoch's updates"
KNOWN = (
    ("KL to the frozen model", ("kl",)),
    ("Approximate KL of an update", ("approx_kl",)),
    ("Share of ratios clipped", ("clip_high", "clip_low")),
    ("Distance from the policy that sampled", ("moved",)),
    ("Share of points outside the trust region", ("outside",)),
    (RATIOS, ("ratio_dev", "ratio_dev_moved")),
    ("Std of the reward within groups", ("group_std",)),
    ("Share of groups with zero std", ("zero_std",)),
    ("Gradient norm", ("grad_norm",)),
    ("Loss", ("loss", "policy")),
    ("Share of images without a score", ("failed",)),
    ("Updates left out", ("skipped",)),
    ("Mean step at which groups fork", ("fork",)),
)
# Figures with a line a step: of the metrics whose names are the prefix and the step's number.
BY_STEP = (
    ("Running spread of rewards, by fork step", "spread_"),
    ("Share of groups, by fork step", "fork_"),
)
NOT_DRAWN = {"epoch", "nfe", "seconds_all", *AXES}
NOT_HEALTH = ("seconds_", "turning_", "evaluations_", "images_")


@dataclass(frozen=True)
class Chart:
    """Lines of the same unit: `keys` are columns of the runs' `table` ("train" or "eval")."""

    section: str
    title: str
    table: str
    keys: tuple[str, ...]


def charts(runs: list[Run]) -> list[Chart]:
    """The figures for which some run has numbers, in the page's order.

    Without lines that repeat another (the total of a single scorer) and the health of `silent`.
    """
    drawn = [Chart(HELD_OUT, name, "eval", (name,)) for name in _distinct_scores(runs, "eval")]
    drawn += [Chart(TRAINING, name, "train", (name,)) for name in _distinct_scores(runs, "train")]
    drawn += [chart for chart in _health(runs) if not _zero(runs, chart)]
    seconds = [n for n in _names(runs, "train") if n.startswith("seconds_") and n not in NOT_DRAWN]
    return drawn + ([Chart(COST, "Seconds an epoch", "train", tuple(seconds))] if seconds else [])


def silent(runs: list[Run]) -> list[str]:
    """Titles of the health figures that would show nothing but zeros."""
    return [chart.title for chart in _health(runs) if _zero(runs, chart)]


def _health(runs: list[Run]) -> list[Chart]:
    """The figures of KNOWN and BY_STEP, then one for each other metric."""
    names = _names(runs, "train")
    by_step = [(title, _of_steps(names, prefix)) for title, prefix in BY_STEP]
    drawn = {key for _, keys in (*KNOWN, *by_step) for key in keys}
    drawn |= {*NOT_DRAWN, *_scores(runs, "train")}
    rest = [n for n in names if n.removesuffix("_se") not in drawn and not n.startswith(NOT_HEALTH)]
    known = [
        (title, _distinct(runs, "train", (k for k in keys if k in names))) for title, keys in KNOWN
    ]
    titled = [(title, list(keys)) for title, keys in (*known, *by_step) if keys]
    titled += [(name.replace("_", " "), [name]) for name in rest]
    return [Chart(HEALTH, title, "train", tuple(keys)) for title, keys in titled]


def _of_steps(names: Iterable[str], prefix: str) -> tuple[str, ...]:
    """The names that are the prefix and a number, in the order of the numbers."""
    numbers = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
    return tuple(f"{prefix}{number}" for number in sorted(filter(str.isdigit, numbers), key=int))


def _distinct_scores(runs: list[Run], table: str) -> list[str]:
    names = sorted(_scores(runs, table), key=lambda name: (name != "reward", rank(name)))
    return _distinct(runs, table, names)


def _scores(runs: list[Run], table: str) -> list[str]:
    return [n for n in _names(runs, table) if any(_is_score(run, table, n) for run in runs)]


def _is_score(run: Run, table: str, name: str) -> bool:
    """Scores have a standard error, even if unknown; a scorer's extras are called scorer/extra."""
    named = name == "reward" or "/" in name
    return f"{name}_se" in getattr(run, table) or (named and not name.endswith("_se"))


def _zero(runs: list[Run], chart: Chart) -> bool:
    return not any(value for run in runs for key in chart.keys for value in run.train.get(key, []))


def _distinct(runs: list[Run], table: str, names: Iterable[str]) -> list[str]:
    """The names without those that have, in every run, the values of an earlier one."""
    kept: list[str] = []
    seen: list[list[Any]] = []
    for name in names:
        values = [getattr(run, table).get(name) for run in runs]
        if values not in seen:
            kept.append(name)
            seen.append(values)
    return kept


def payload(runs: list[Run], bands: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's script draws: {"axes", "charts", "runs", "bands"}, with five digits."""
    drawn, fields = charts(runs), ("label", "run", "train", "eval")
    needed = {key for chart in drawn for key in chart.keys} | {*AXES, "epoch"}

    def table(columns: Table) -> Table:
        kept = {n: c for n, c in columns.items() if n.removesuffix("_se") in needed or n in needed}
        return {name: [digits(value) for value in column] for name, column in kept.items()}

    return {
        "axes": AXES,
        "charts": [asdict(chart) for chart in drawn],
        "runs": [{"name": r.name, "train": table(r.train), "eval": table(r.eval)} for r in runs],
        "bands": [{name: band[name] for name in fields} for band in bands],
    }


def turning_points(run: Run, most: int = 10) -> dict[str, Any] | None:
    """Share of trajectories with a turning point at each step, averaged over spans of epochs.

    {"steps": [index], "spans": ["1-7"], "shares": [a step: [a span]]}, at most `most` spans; None
    for a credit without turning points.
    """
    names = _of_steps(run.train, "turning_")
    steps = [int(name.removeprefix("turning_")) for name in names]
    columns = [[value or 0.0 for value in run.train[name]] for name in names]
    if not any(map(any, columns)):
        return None
    epochs = run.train["epoch"]
    width = -(-len(epochs) // most)
    spans = [slice(start, start + width) for start in range(0, len(epochs), width)]
    ends = [(epochs[span][0], epochs[span][-1]) for span in spans]
    return {
        "steps": steps,
        "spans": [f"{first}" if first == last else f"{first}–{last}" for first, last in ends],
        "shares": [[statistics.mean(column[span]) for span in spans] for column in columns],
    }


def phases(run: Run) -> list[dict[str, Any]]:
    """Medians of an epoch by phase, in order: seconds, their share, model evaluations, images.

    {"phase", "seconds", "share", "evaluations", "images"}; an unknown count is None.
    """
    estimates = _evaluations(run)
    rows: list[dict[str, Any]] = []
    for name in run.train:
        phase = name.removeprefix("seconds_")
        if phase in (name, "all"):
            continue
        counted = _median(run, f"evaluations_{phase}")
        evaluations = estimates.get(phase) if counted is None else counted
        row = {"phase": phase, "seconds": _median(run, name), "evaluations": evaluations}
        rows.append(row | {"images": _median(run, f"images_{phase}")})
    total = sum(row["seconds"] for row in rows) or 1.0
    return [row | {"share": row["seconds"] / total} for row in rows]


def _evaluations(run: Run) -> dict[str, float | None]:
    """Rows through the model in an epoch, for a run that did not count them by phase.

    Sampled ones from their logged sum, trained ones from the settings (twice with a KL term).
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
    """The columns in which some run has a value, in order."""
    columns = [column for run in runs for column in getattr(run, table).items()]
    known = (name for name, values in columns if any(value is not None for value in values))
    return list(dict.fromkeys(known))


def digits(value: float | None) -> float | None:
    """Five significant digits; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
