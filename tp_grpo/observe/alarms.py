"""Alarms on metrics.jsonl: what goes wrong in a run, by which numbers, why, and what to change.

`check` is called once an epoch; docs/troubleshooting.md says what `tracking.alarms` does about it.
A record is a line of metrics.jsonl, {"kind": "train" | "eval", "epoch", name: number or None}. What
is not logged raises no alarm. Limits apply to medians, since one epoch has a few dozen prompts.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tp_grpo.settings import Settings
from tp_grpo.settings.sections import weight

Record = Mapping[str, Any]
History = Sequence[Record]
Reading = dict[str, Any]  # what a rule compares, `value`, and other names that its words use

RECENT = 5  # epochs whose median is judged: three of five must be bad
# The KL is the mean squared shift of a step's mean over twice the variance of its noise. At 1/8 the
# policy's mean is half a noise std away from the base model's everywhere: another model.
KL = 0.125
ABOVE, BELOW = operator.gt, operator.lt


@dataclass(frozen=True)
class Alarm:
    """What goes wrong: the numbers in words, their likely cause, and what to change."""

    name: str
    epoch: int
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return (
            f"alarm after epoch {self.epoch}, {self.name}: {self.evidence}. "
            f"Likely: {self.cause}. To do: {self.change}."
        )


class Alarmed(RuntimeError):
    """Ends a run, on all ranks alike. Its message is the alarms and what was done about them."""

    def __init__(self, raised: Sequence[Alarm], done: str = "") -> None:
        super().__init__("\n".join([*map(str, raised), *([done] if done else [])]))


@dataclass(frozen=True)
class Rule:
    """Raises an alarm for each reading whose `value` is beyond the limit.

    limit: ABOVE or BELOW a number, or a function of the config that gives it.
    evidence, change: format strings of the reading, the limit, the config, and n = RECENT.
    """

    name: str
    read: Callable[[History, Settings], Iterable[Reading]]
    limit: tuple[Callable[[float, float], bool], float | Callable[[Settings], float]]
    evidence: str
    cause: str
    change: str

    def check(self, history: History, config: Settings) -> Iterator[Alarm]:
        beyond, bound = self.limit
        limit = bound(config) if callable(bound) else bound
        for reading in self.read(history, config):
            if beyond(reading["value"], limit):
                known = reading | {"limit": limit, "config": config, "n": RECENT}
                words = (self.evidence.format(**known), self.cause, self.change.format(**known))
                yield Alarm(self.name, history[-1]["epoch"], *words)


def check(history: History, config: Settings) -> list[Alarm]:
    """The alarms that stand after the last record; none where `tracking.alarms` is "off"."""
    if not history or config.tracking.alarms == "off":
        return []
    return [alarm for rule in RULES for alarm in rule.check(history, config)]


def risen(history: History, config: Settings) -> list[Alarm]:
    """Alarms newly raised by the last epoch."""
    if not history:
        return []
    before = [record for record in history if record["epoch"] < history[-1]["epoch"]]
    stood = {alarm.name for alarm in check(before, config)}
    return [alarm for alarm in check(history, config) if alarm.name not in stood]


def never_trained_on(config: Settings) -> list[str]:
    """The scorers of weight 0: they judge a policy that was never rewarded for pleasing them."""
    return [name for name, options in config.rewards.scorers.items() if weight(options) == 0]


def honest(history: History, config: Settings) -> dict[int, float]:
    """{epoch: total} of the evaluations (0: the base model) after which no alarm stood.

    The total is highest where the reward is hacked most, and misses a policy that has collapsed.
    """

    def clean(epoch: int) -> bool:
        return not check([record for record in history if record["epoch"] <= epoch], config)

    evaluations = _complete(history, "eval", "total")
    return {r["epoch"]: r["total"] for r in evaluations if clean(r["epoch"])}


def best_epoch(totals: Mapping[int, float], saved: Iterable[int]) -> int | None:
    """The saved epoch with the highest of `honest`'s totals; None if none has one."""
    return max((epoch for epoch in saved if epoch in totals), key=totals.__getitem__, default=None)


def _complete(history: History, kind: str, *names: str) -> list[Record]:
    """The records of that kind that have a number under each name."""
    return [
        record
        for record in history
        if record["kind"] == kind and all(record.get(name) is not None for name in names)
    ]


def _series(history: History, name: str) -> list[float]:
    return [record[name] for record in _complete(history, "train", name)]


def _median(name: str) -> Callable[[History, Settings], list[Reading]]:
    """Reads the median of the last epochs, once there are enough."""

    def read(history: History, config: Settings) -> list[Reading]:
        values = _series(history, name)[-RECENT:]
        return [{"value": statistics.median(values)}] if len(values) == RECENT else []

    return read


def _change(name: str) -> Callable[[History, Settings], list[Reading]]:
    """Reads the median of the last epochs over that of the first, once they do not overlap."""

    def read(history: History, config: Settings) -> list[Reading]:
        values = _series(history, name)
        if len(values) < 2 * RECENT or not (first := statistics.median(values[:RECENT])):
            return []
        last = statistics.median(values[-RECENT:])
        return [{"value": last / first, "first": first, "last": last}]

    return read


def _kl(history: History, config: Settings) -> list[Reading]:
    return _median("kl")(history, config) if config.train.beta > 0 else []


def _kl_limit(config: Settings) -> float:
    # The std in the published sde's KL leaves out sqrt(-dt), about sqrt(1 / steps).
    return KL / config.sample.steps if config.sample.kind == "sde" else KL


def _clipped(history: History, config: Settings) -> Iterator[Reading]:
    """The share outside the clip range among the updates whose ratios can move.

    An epoch's first update is on the policy that sampled: its ratios are 1.
    """
    rounds = config.train.inner_epochs * config.train.updates_per_epoch
    shares = [_median(name)(history, config) for name in ("clip_high", "clip_low")]
    if rounds > 1 and all(shares):
        yield {"value": sum(share["value"] for (share,) in shares) * rounds / (rounds - 1)}


def _hacked(history: History, config: Settings) -> Iterator[Reading]:
    """For each never-trained scorer its best evaluation and the last.

    value: the smaller of its fall and the total's rise between them, in standard errors.
    """
    for name in never_trained_on(config):
        evaluations = _complete(history, "eval", name, f"{name}_se", "total", "total_se")
        if len(evaluations) > 1:
            best, last = max(evaluations[:-1], key=operator.itemgetter(name)), evaluations[-1]
            value = min(_errors(last, best, name), _errors(best, last, "total"))
            scores = {"scorer": name, "was": best[name], "now": last[name]}
            yield {"value": value, "best": best, "last": last} | scores


def _errors(low: Record, high: Record, name: str) -> float:
    """How far `high` is above `low`, in standard errors of the difference."""
    error = (low[f"{name}_se"] ** 2 + high[f"{name}_se"] ** 2) ** 0.5
    return float((high[name] - low[name]) / max(error, 1e-12))


_OUTSIDE = (
    "{value:.1%} of the ratios that can move are outside train.clip_range = "
    "{config.train.clip_range:g}"
)
RULES = (
    Rule(
        "reward hacking",
        _hacked,
        (ABOVE, 5.0),  # standard errors; it is compared with the best of many evaluations
        "{scorer}, never trained on, fell from {was:.4g} to {now:.4g} between epochs {best[epoch]} "
        "and {last[epoch]} while the reward rose from {best[total]:.4g} to {last[total]:.4g}",
        "the policy pleases the trained scorers at the images' expense",
        "return to the checkpoint of epoch {best[epoch]}; raise train.beta, add to rewards.scorers",
    ),
    Rule(
        "KL",
        _kl,
        (ABOVE, _kl_limit),
        "the KL to the frozen model is {value:.3g}, median of {n} epochs, above {limit:.3g}",
        "the policy has left the base model far behind",
        "look at the images; raise train.beta or lower train.learning_rate",
    ),
    Rule(
        "clip fraction",
        _clipped,
        (ABOVE, 0.95),  # small and large steps look alike
        f"{_OUTSIDE}, above {{limit:.0%}}",
        "one update moves the policy much further than the clip range lets the next follow",
        "lower train.learning_rate, or raise train.clip_range",
    ),
    Rule(
        "clip fraction",
        _clipped,
        (BELOW, 0.01),
        f"{_OUTSIDE}, below {{limit:.0%}}",
        "the policy hardly moves: updates are too small, or skipped because they are not finite",
        "look at grad_norm and skipped; raise train.learning_rate, or use another model.dtype",
    ),
    Rule(
        "zero std",
        _median("zero_std"),
        (ABOVE, 0.5),  # an update rests on the minority
        "{value:.0%} of the groups' steps have equal rewards, median of {n} epochs, above "
        "{limit:.0%}",
        "the prompts are too easy or too hard for the reward, or it has too few values",
        "change prompts.train, raise sample.group_size or sample.noise_level, use a graded score",
    ),
    Rule(
        "diversity",
        _change("diversity"),
        (BELOW, 0.5),
        "two images of a prompt differ by {last:.3g}, at first by {first:.3g}: below {limit:.0%}",
        "the policy draws one image for a prompt, whatever the noise",
        "raise train.beta, return to an earlier checkpoint, or add to rewards.scorers",
    ),
    Rule(
        "high frequencies",
        _change("high_frequency"),
        (ABOVE, 2.0),  # sharper images rise by less, grids and noise by much more
        "the images' finest detail is {last:.3g}, at first {first:.3g}: more than {limit:g} times",
        "grids or grain that the scorer likes or does not see",
        "look at the images; raise train.beta, lower train.learning_rate, add to rewards.scorers",
    ),
    Rule(
        "ratio_dev",
        _median("ratio_dev"),
        (ABOVE, lambda config: 0.1 * config.train.clip_range),
        "the ratio of the unmoved policy is {value:.2g} away from 1, median of {n} epochs, more "
        "than 0.1 x train.clip_range = {limit:.2g}",
        "sampling and training compute different velocities, as batch-dependent kernels do",
        "try model.dtype fp32 or bf16, another model.attention_backend, or model.compile off",
    ),
    Rule(
        "failed rewards",
        _median("failed"),
        (ABOVE, lambda config: 0.5 * config.rewards.max_failed),
        "{value:.1%} of the images got no score, median of {n} epochs, more than {limit:.1%}; "
        "above rewards.max_failed = {config.rewards.max_failed:.0%} the run stops",
        "a reward server that is down or overloaded, or images that a scorer cannot read",
        "look at the server's messages; lower its batch_size, raise its patience (rewards.scorers)",
    ),
)
