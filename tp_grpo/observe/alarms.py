"""Alarms on the records of metrics.jsonl: what goes wrong in a run, by which numbers, why, and what to change.

`check` is asked once an epoch. What the trainer does about an alarm is `tracking.alarms`:

- `warn`: say it, once until it has been silent again; the run goes on.
- `stop`: say it and end the run after this epoch's checkpoint. The same command goes on from there, and stops again
  while the alarm stands; with `--config.tracking.alarms=warn` it does not.
- `rollback`: like `stop`, and what the run exports is the policy of `best_epoch`, not the last one. The checkpoints
  stay. It does not train on from there: the same settings on the same prompts would lead to the same place. It says
  the command that does so with other settings.
- `off`: nothing is checked.

A record is a line of metrics.jsonl: {"kind": "train" | "eval", "epoch", name: number or None}. Names that a run does
not log raise no alarm. Thresholds are on medians of several epochs, since one epoch has only a few dozen prompts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tp_grpo.settings.sections import weight

History = Sequence[Mapping[str, Any]]

RECENT = 5  # epochs whose median is judged: three of five must be bad
# A score fell or rose when the difference exceeds so many standard errors. Both evaluations have the same prompts and
# noise, so the real error is smaller; 5 leaves room for having picked the best of many evaluations to compare with.
SIGMAS = 5.0
# The KL is the mean squared shift of a step's mean over twice the variance of its noise. At 1/8 the policy's mean is
# half a noise std away from the base model's at every pixel and step: another model, not a better one.
KL = 0.125
CLIPPED = 0.95  # of the ratios that can differ from 1; then the clip range no longer tells small steps from large ones
UNCLIPPED = 0.01  # below it nearly no ratio leaves the clip range: the updates do next to nothing
ZERO_STD = 0.5  # of the (group, step) pairs; with more than half of them silent, an update rests on the minority
DIVERSITY = (
    0.5  # of the first epochs'; the images of one prompt have come twice as close to each other
)
HIGH_FREQUENCY = (
    2.0  # times the first epochs'; sharper images rise by less, grids and noise by much more
)
RATIO = 0.1  # of train.clip_range; the unmoved policy should have a ratio of 1, and this is noise inside the clip range
FAILED = 0.5  # of rewards.max_failed, where the run would stop


@dataclass(frozen=True)
class Alarm:
    """What goes wrong: by which numbers (`values`, in words in `evidence`), the likely cause, what to change."""

    name: str
    epoch: int
    evidence: str
    values: Mapping[str, float]
    cause: str
    change: str

    def __str__(self) -> str:
        return f"alarm after epoch {self.epoch}, {self.name}: {self.evidence}. Likely: {self.cause}. To do: {self.change}."


class Alarmed(RuntimeError):
    """Ends a run whose `tracking.alarms` is stop or rollback; the message is that of the alarms, and what was done."""

    def __init__(self, raised: Sequence[Alarm], done: str = "") -> None:
        super().__init__("\n".join([*map(str, raised), *([done] if done else [])]))
        self.raised = tuple(raised)


def check(history: History, config: Any) -> list[Alarm]:
    """The alarms that stand after the last record of `history`; none where `tracking.alarms` is "off"."""
    if not history or config.tracking.alarms == "off":
        return []
    return [alarm for rule in RULES for alarm in rule(history, config)]


def risen(history: History, config: Any) -> list[Alarm]:
    """Of the alarms that stand after the last epoch, those that did not after the one before."""
    if not history:
        return []
    before = [record for record in history if record["epoch"] < history[-1]["epoch"]]
    stood = {alarm.name for alarm in check(before, config)}
    return [alarm for alarm in check(history, config) if alarm.name not in stood]


def never_trained_on(config: Any) -> list[str]:
    """The scorers of weight 0: they are asked, and judge a policy that was never rewarded for pleasing them."""
    return [name for name, scorer in config.rewards.scorers.items() if weight(scorer) == 0]


def honest(history: History, config: Any) -> dict[int, float]:
    """The totals of the evaluations by epoch, 0 the base model's, but for epochs after which any alarm stood.

    The total is highest where the reward is hacked most, and says nothing of a policy that has collapsed.
    """
    totals = {
        r["epoch"]: r["total"]
        for r in history
        if r["kind"] == "eval" and r.get("total") is not None
    }
    return {
        epoch: total
        for epoch, total in totals.items()
        if not check([record for record in history if record["epoch"] <= epoch], config)
    }


def best_epoch(totals: Mapping[int, float], saved: Iterable[int]) -> int | None:
    """Of the epochs `saved`, the one with the highest of `honest`'s totals; None where none of them has one."""
    return max(
        (epoch for epoch in saved if epoch in totals), key=lambda epoch: totals[epoch], default=None
    )


def _hacked(history: History, config: Any) -> Iterable[Alarm]:
    for name in never_trained_on(config):
        if (fall := _fall(history, name)) is not None:
            then, now = fall
            yield Alarm(
                "reward hacking",
                history[-1]["epoch"],
                f"{name}, never trained on, fell from {then[name]:.4g} to {now[name]:.4g} between epochs "
                f"{then['epoch']} and {now['epoch']} while the reward rose from {then['total']:.4g} to "
                f"{now['total']:.4g}",
                {"held_out": now[name] - then[name], "total": now["total"] - then["total"]},
                "the policy pleases the trained scorers at the images' expense",
                f"go back to the checkpoint of epoch {then['epoch']}; raise train.beta, or train on several scorers "
                "(rewards.scorers)",
            )


def _kl(history: History, config: Any) -> Iterable[Alarm]:
    # The published sde leaves out sqrt(-dt), about 1 / steps, in the std that the KL is measured by.
    limit = KL / config.sample.steps if config.sample.kind == "sde" else KL
    kl = _recent(history, "kl")
    if config.train.beta > 0 and kl is not None and kl > limit:
        yield Alarm(
            "KL",
            history[-1]["epoch"],
            f"the KL to the frozen model is {kl:.3g}, median of {RECENT} epochs, above {limit:.3g}",
            {"kl": kl, "limit": limit},
            "the policy has left the base model far behind",
            "raise train.beta or lower train.learning_rate, and look at the images before trusting the reward",
        )


def _clip(history: History, config: Any) -> Iterable[Alarm]:
    rounds = config.train.inner_epochs * config.train.updates_per_epoch
    high, low = _recent(history, "clip_high"), _recent(history, "clip_low")
    if rounds < 2 or high is None or low is None:
        return
    # The first update of an epoch is on the policy that sampled: its ratios are 1, and the mean is over all updates.
    share = (high + low) * rounds / (rounds - 1)
    said = f"{share:.1%} of the ratios that can move are outside train.clip_range = {config.train.clip_range:g}"
    values = {"share": share, "clip_high": high, "clip_low": low}
    if share > CLIPPED:
        cause = (
            "one update moves the policy much further than the clip range allows the next to follow"
        )
        change = "lower train.learning_rate, or raise train.clip_range"
        yield Alarm(
            "clip fraction",
            history[-1]["epoch"],
            f"{said}, above {CLIPPED:.0%}",
            values,
            cause,
            change,
        )
    elif share < UNCLIPPED:
        cause = "the policy hardly moves: updates too small, or left out as not finite"
        change = "look at grad_norm and skipped in metrics.jsonl; raise train.learning_rate, or use another model.dtype"
        yield Alarm(
            "clip fraction",
            history[-1]["epoch"],
            f"{said}, below {UNCLIPPED:.0%}",
            values,
            cause,
            change,
        )


def _zero_std(history: History, config: Any) -> Iterable[Alarm]:
    share = _recent(history, "zero_std")
    if share is not None and share > ZERO_STD:
        yield Alarm(
            "zero std",
            history[-1]["epoch"],
            f"{share:.0%} of the groups' steps have equal rewards, median of {RECENT} epochs, above {ZERO_STD:.0%}",
            {"zero_std": share},
            "the prompts are too easy or too hard for the reward, or it knows too few values",
            "use other prompts (prompts.train), more images a prompt (sample.group_size), a graded score or more noise "
            "(sample.noise_level)",
        )


def _diversity(history: History, config: Any) -> Iterable[Alarm]:
    if (pair := _first_and_last(history, "diversity")) and pair[1] < DIVERSITY * pair[0]:
        yield Alarm(
            "diversity",
            history[-1]["epoch"],
            f"two images of a prompt differ by {pair[1]:.3g}, at first by {pair[0]:.3g}: below {DIVERSITY:.0%}",
            {"first": pair[0], "last": pair[1]},
            "the policy draws one image for a prompt, whatever the noise",
            "raise train.beta, go back to an earlier checkpoint, or train on several scorers (rewards.scorers)",
        )


def _high_frequency(history: History, config: Any) -> Iterable[Alarm]:
    if (pair := _first_and_last(history, "high_frequency")) and pair[1] > HIGH_FREQUENCY * pair[0]:
        yield Alarm(
            "high frequencies",
            history[-1]["epoch"],
            f"the images' finest detail is {pair[1]:.3g}, at first {pair[0]:.3g}: more than {HIGH_FREQUENCY:g} times",
            {"first": pair[0], "last": pair[1]},
            "grids or grain that the scorer likes or does not see",
            "look at the images; raise train.beta, lower train.learning_rate, or add a scorer that sees the picture "
            "(rewards.scorers)",
        )


def _ratio(history: History, config: Any) -> Iterable[Alarm]:
    deviation, limit = _recent(history, "ratio_dev"), RATIO * config.train.clip_range
    if deviation is not None and deviation > limit:
        yield Alarm(
            "ratio_dev",
            history[-1]["epoch"],
            f"the ratio of the unmoved policy is {deviation:.2g} away from 1, median of {RECENT} epochs, more than "
            f"{RATIO:g} x train.clip_range = {limit:.2g}",
            {"ratio_dev": deviation, "limit": limit},
            "sampling and training do not compute quite the same velocity; a low-precision kernel depends on the batch",
            "try model.dtype fp32 or bf16, another model.attention_backend, or model.compile off",
        )


def _failed(history: History, config: Any) -> Iterable[Alarm]:
    failed, limit = _recent(history, "failed"), FAILED * config.rewards.max_failed
    if failed is not None and failed > limit:
        yield Alarm(
            "failed rewards",
            history[-1]["epoch"],
            f"{failed:.1%} of the images came back without a score, median of {RECENT} epochs, more than {limit:.1%}; "
            f"above rewards.max_failed = {config.rewards.max_failed:.0%} the run stops",
            {"failed": failed, "limit": limit},
            "a reward server that is down or overfull, or images that a scorer cannot read",
            "look at the server's words; lower its batch_size, raise its retries (rewards.scorers)",
        )


RULES: tuple[Callable[[History, Any], Iterable[Alarm]], ...] = (
    _hacked,
    _kl,
    _clip,
    _zero_std,
    _diversity,
    _high_frequency,
    _ratio,
    _failed,
)


def _series(history: History, name: str) -> list[float]:
    return [r[name] for r in history if r["kind"] == "train" and r.get(name) is not None]


def _recent(history: History, name: str) -> float | None:
    """Median of the last epochs; None before there are enough of them."""
    values = _series(history, name)[-RECENT:]
    return statistics.median(values) if len(values) == RECENT else None


def _first_and_last(history: History, name: str) -> tuple[float, float] | None:
    """Median of the first and of the last epochs, None while they overlap or the first are 0."""
    values = _series(history, name)
    if len(values) < 2 * RECENT or not statistics.median(values[:RECENT]):
        return None
    return statistics.median(values[:RECENT]), statistics.median(values[-RECENT:])


def _fall(history: History, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The evaluation in which `name` was best, and the last, if it fell and the total rose between them."""
    keys = (name, f"{name}_se", "total", "total_se")
    known = [
        r for r in history if r["kind"] == "eval" and all(r.get(key) is not None for key in keys)
    ]
    if len(known) < 2:
        return None
    then, now = max(known[:-1], key=lambda record: record[name]), known[-1]
    fell = _errors(then[name] - now[name], then[f"{name}_se"], now[f"{name}_se"])
    rose = _errors(now["total"] - then["total"], then["total_se"], now["total_se"])
    return (then, now) if fell > SIGMAS and rose > SIGMAS else None


def _errors(difference: float, *errors: float) -> float:
    """A difference in standard errors."""
    error = sum(e**2 for e in errors) ** 0.5
    return difference / max(error, 1e-12)
