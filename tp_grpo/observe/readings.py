"""What the alarms read in metrics.jsonl: medians of the last epochs, changes since the first.

A reader takes the history and the config; it returns nothing where too little is logged.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.settings import Settings
from tp_grpo.settings.sections import weight

Record = Mapping[str, Any]
History = Sequence[Record]
Reading = dict[str, Any]  # what a rule compares, `value`, and other names that its words use

RECENT = 5  # epochs whose median is judged: three of five must be bad
# The KL is the mean squared shift of a step's mean over twice the variance of its noise. At 1/8 the
# policy's mean is half a noise std away from the base model's everywhere: another model.
KL = 0.125
# How far `D = E - E_old` of matching and ELBO-PG may be from 0 on average. D is taken from the
# advantage A, whose std is 1. The pull is meant to act where D reaches A; a single epoch's updates
# that go a tenth as far have left the range of small steps. On the embedded model runs that learnt
# had medians of at most 0.031; three that rose beyond 0.1 lost reward (docs/troubleshooting.md).
MOVED = 0.1


def never_trained_on(config: Settings) -> list[str]:
    """The scorers of weight 0: they judge a policy that was never rewarded for pleasing them."""
    return [name for name, options in config.rewards.scorers.items() if weight(options) == 0]


def complete(history: History, kind: str, *names: str) -> list[Record]:
    """The records of that kind that have a number under each name."""
    return [
        record
        for record in history
        if record["kind"] == kind and all(record.get(name) is not None for name in names)
    ]


def _series(history: History, name: str) -> list[float]:
    return [record[name] for record in complete(history, "train", name)]


def median(name: str) -> Callable[[History, Settings], list[Reading]]:
    """Reads the median of the last epochs, once there are enough."""

    def read(history: History, config: Settings) -> list[Reading]:
        values = _series(history, name)[-RECENT:]
        return [{"value": statistics.median(values)}] if len(values) == RECENT else []

    return read


def change(name: str) -> Callable[[History, Settings], list[Reading]]:
    """Reads the median of the last epochs over that of the first, once they do not overlap."""

    def read(history: History, config: Settings) -> list[Reading]:
        values = _series(history, name)
        if len(values) < 2 * RECENT or not (first := statistics.median(values[:RECENT])):
            return []
        last = statistics.median(values[-RECENT:])
        return [{"value": last / first, "first": first, "last": last}]

    return read


def kl(history: History, config: Settings) -> list[Reading]:
    """The KL of steps; objectives of clean images have another distance in its place."""
    known = OBJECTIVES.get(_objective(config))
    measured = config.train.beta > 0 and not (known and known.clean)
    return median("kl")(history, config) if measured else []


def moved(history: History, config: Settings) -> Iterator[Reading]:
    """Mean |D| of the updates whose policy is not the old one: all, where the old one lags."""
    known = OBJECTIVES.get(_objective(config))
    if known and known.bounded:
        lags = config.objective.old_ramp > 0 and config.objective.old_max > 0
        for reading in median("moved")(history, config):
            yield {"value": reading["value"] * (1.0 if lags else _rounds(config))}


def _objective(config: Settings) -> str:
    """Its name; a run from before there were several has GRPO's."""
    name: str = getattr(getattr(config, "objective", None), "name", "grpo")
    return name


def _rounds(config: Settings) -> float:
    """Updates of an epoch over those whose policy has moved since sampling; 0 if there are none.

    An epoch's first update is on the policy that sampled, and adds 0 to the epoch's mean.
    """
    rounds = config.train.inner_epochs * config.train.updates_per_epoch
    return rounds / (rounds - 1) if rounds > 1 else 0.0


def kl_limit(config: Settings) -> float:
    """Of the kind of step that `sample.kind` is."""
    # The std in the published sde's KL leaves out sqrt(-dt), about sqrt(1 / steps).
    return KL / config.sample.steps if config.sample.kind == "sde" else KL


def clipped(history: History, config: Settings) -> Iterator[Reading]:
    """The share outside the clip range among the updates whose ratios can move.

    An epoch's first update has ratios of 1, see `_rounds`.
    """
    known = OBJECTIVES.get(_objective(config))
    if known and "clip_range" not in known.options:
        return  # its range is another
    shares = [median(name)(history, config) for name in ("clip_high", "clip_low")]
    if _rounds(config) and all(shares):
        yield {"value": sum(share["value"] for (share,) in shares) * _rounds(config)}


def hacked(history: History, config: Settings) -> Iterator[Reading]:
    """For each never-trained scorer its best evaluation and the last.

    value: the smaller of its fall and the total's rise between them, in standard errors.
    """
    for name in never_trained_on(config):
        evaluations = complete(history, "eval", name, f"{name}_se", "total", "total_se")
        if len(evaluations) > 1:
            best, last = max(evaluations[:-1], key=operator.itemgetter(name)), evaluations[-1]
            value = min(_errors(last, best, name), _errors(best, last, "total"))
            scores = {"scorer": name, "was": best[name], "now": last[name]}
            yield {"value": value, "best": best, "last": last} | scores


def _errors(low: Record, high: Record, name: str) -> float:
    """How far `high` is above `low`, in standard errors of the difference."""
    error = (low[f"{name}_se"] ** 2 + high[f"{name}_se"] ** 2) ** 0.5
    return float((high[name] - low[name]) / max(error, 1e-12))
