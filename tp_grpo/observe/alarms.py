"""Alarms on metrics.jsonl: what goes wrong in a run, by which numbers, why, and what to change.

`check` is called once an epoch; docs/troubleshooting.md says what `tracking.alarms` does about it.
A record is a line of metrics.jsonl, {"kind": "train" | "eval", "epoch", name: number or None}. What
is not logged raises no alarm. Limits apply to medians, since one epoch has a few dozen prompts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tp_grpo.observe.readings import (
    MOVED,
    RECENT,
    History,
    Reading,
    change,
    clipped,
    complete,
    hacked,
    kl,
    kl_limit,
    median,
    moved,
)
from tp_grpo.settings import Settings

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


def honest(history: History, config: Settings) -> dict[int, float]:
    """{epoch: total} of the evaluations (0: the base model) after which no alarm stood.

    The total is highest where the reward is hacked most, and misses a policy that has collapsed.
    """

    def clean(epoch: int) -> bool:
        return not check([record for record in history if record["epoch"] <= epoch], config)

    evaluations = complete(history, "eval", "total")
    return {r["epoch"]: r["total"] for r in evaluations if clean(r["epoch"])}


def best_epoch(totals: Mapping[int, float], saved: Iterable[int]) -> int | None:
    """The saved epoch with the highest of `honest`'s totals; None if none has one."""
    return max((epoch for epoch in saved if epoch in totals), key=totals.__getitem__, default=None)


_OUTSIDE = (
    "{value:.1%} of the ratios that can move are outside train.clip_range = "
    "{config.train.clip_range:g}"
)
RULES = (
    Rule(
        "reward hacking",
        hacked,
        (ABOVE, 5.0),  # standard errors; it is compared with the best of many evaluations
        "{scorer}, never trained on, fell from {was:.4g} to {now:.4g} between epochs {best[epoch]} "
        "and {last[epoch]} while the reward rose from {best[total]:.4g} to {last[total]:.4g}",
        "the policy pleases the trained scorers at the images' expense",
        "return to the checkpoint of epoch {best[epoch]}; raise train.beta, add to rewards.scorers",
    ),
    Rule(
        "KL",
        kl,
        (ABOVE, kl_limit),
        "the KL to the frozen model is {value:.3g}, median of {n} epochs, above {limit:.3g}",
        "the policy has left the base model far behind",
        "look at the images; raise train.beta or lower train.learning_rate",
    ),
    Rule(
        "moved",
        moved,
        (ABOVE, MOVED),
        "an epoch's updates move the predictions by {value:.2g} (mean |D|, median of {n} epochs), "
        "more than {limit:g}",
        "updates are so large that the pull towards the policy that sampled does not hold it; the "
        "reward is about to collapse, or has",
        "return to a checkpoint from before `moved` rose; lower train.learning_rate, and raise "
        "objective.trust where objective.name is matching",
    ),
    Rule(
        "clip fraction",
        clipped,
        (ABOVE, 0.95),  # small and large steps look alike
        f"{_OUTSIDE}, above {{limit:.0%}}",
        "one update moves the policy much further than the clip range lets the next follow",
        "lower train.learning_rate, or raise train.clip_range",
    ),
    Rule(
        "clip fraction",
        clipped,
        (BELOW, 0.01),
        f"{_OUTSIDE}, below {{limit:.0%}}",
        "the policy hardly moves: updates are too small, or skipped because they are not finite",
        "look at grad_norm and skipped; raise train.learning_rate, or use another model.dtype",
    ),
    Rule(
        "zero std",
        median("zero_std"),
        (ABOVE, 0.5),  # an update rests on the minority
        "{value:.0%} of the groups' steps have equal rewards, median of {n} epochs, above "
        "{limit:.0%}",
        "the prompts are too easy or too hard for the reward, or it has too few values",
        "change prompts.train, raise sample.group_size or sample.noise_level, use a graded score",
    ),
    Rule(
        "diversity",
        change("diversity"),
        (BELOW, 0.5),
        "two images of a prompt differ by {last:.3g}, at first by {first:.3g}: below {limit:.0%}",
        "the policy draws one image for a prompt, whatever the noise",
        "raise train.beta, return to an earlier checkpoint, or add to rewards.scorers",
    ),
    Rule(
        "high frequencies",
        change("high_frequency"),
        (ABOVE, 2.0),  # sharper images rise by less, grids and noise by much more
        "the images' finest detail is {last:.3g}, at first {first:.3g}: more than {limit:g} times",
        "grids or grain that the scorer likes or does not see",
        "look at the images; raise train.beta, lower train.learning_rate, add to rewards.scorers",
    ),
    Rule(
        "ratio_dev",
        median("ratio_dev"),
        (ABOVE, lambda config: 0.1 * config.train.clip_range),
        "the ratio of the unmoved policy is {value:.2g} away from 1, median of {n} epochs, more "
        "than 0.1 x train.clip_range = {limit:.2g}",
        "sampling and training compute different velocities, as batch-dependent kernels do",
        "try model.dtype fp32 or bf16, another model.attention_backend, or model.compile off",
    ),
    Rule(
        "failed rewards",
        median("failed"),
        (ABOVE, lambda config: 0.5 * config.rewards.max_failed),
        "{value:.1%} of the images got no score, median of {n} epochs, more than {limit:.1%}; "
        "above rewards.max_failed = {config.rewards.max_failed:.0%} the run stops",
        "a reward server that is down or overloaded, or images that a scorer cannot read",
        "look at the server's messages; lower its batch_size, raise its patience (rewards.scorers)",
    ),
)
