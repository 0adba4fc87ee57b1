"""What a run prints as it works: bars on a terminal, plain lines elsewhere, two lines an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")
Shown = TypeVar("Shown", covariant=True)
SILENCE = 60.0  # seconds between two plain lines of one phase
PHASES = {
    "sample": "seconds_rollout",
    "decode": "seconds_decode",
    "score wait": "seconds_score_wait",
    "update": "seconds_update",
}


class Bar(Protocol[Shown]):
    """An iterable that shows its progress, followed by a text."""

    def __iter__(self) -> Iterator[Shown]: ...

    def set_postfix_str(self, s: str) -> None: ...


def epochs(start: int, stop: int) -> Bar[int]:
    """The epochs `start` to `stop` - 1; silent without a terminal, where `summary` says it."""
    if not sys.stderr.isatty():
        return silent(range(start, stop))
    return bar(range(start, stop), "run", unit="epochs", done=start)


def bar(
    items: Sequence[T], name: str, *, unit: str = "batches", each: int = 1, done: int = 0
) -> Bar[T]:
    """`items` with progress, rate and time left; plain lines without a terminal.

    unit: what is counted, `each` per item; done: items of an earlier part of the run.
    """
    if not sys.stderr.isatty():
        return Lines(items, name, unit=unit, each=each)
    counts = {"unit_scale": each, "initial": done, "total": done + len(items)}
    shown: Bar[T] = tqdm(
        items, desc=name, leave=False, dynamic_ncols=True, unit=f" {unit}", **counts
    )
    return shown


def silent(items: Iterable[T]) -> Bar[T]:
    """`items` with nothing shown."""
    hidden: Bar[T] = tqdm(items, disable=True)
    return hidden


class Lines(Iterable[T]):
    """A phase that takes longer than a minute prints a line a minute."""

    def __init__(self, items: Sequence[T], name: str, *, unit: str, each: int) -> None:
        self.items, self.name, self.unit, self.each = items, name, unit, each

    def __iter__(self) -> Iterator[T]:
        begun = spoken = time.monotonic()
        for done, item in enumerate(self.items):
            now = time.monotonic()
            if now - spoken >= SILENCE and done:
                spoken, rate = now, done / (now - begun)
                left = duration((len(self.items) - done) / rate)
                count = f"{done * self.each}/{len(self.items) * self.each} {self.unit}"
                say(f"{self.name}: {count}, {rate * self.each:.3g} a second, {left} left")
            yield item

    def set_postfix_str(self, s: str) -> None:
        """The epoch's summary says it."""


def say(text: str) -> None:
    """A line on standard output, above the bars; flushed, since that may be a file."""
    tqdm.write(text)
    sys.stdout.flush()


def summary(epoch: int, epochs: int, values: Mapping[str, Any], images: int) -> str:
    """Two lines for an epoch, from its line of metrics.jsonl: what was learnt, and the time taken.

    images: trajectories an epoch, over all ranks.
    """
    turning = [share for name, share in values.items() if name.startswith("turning_")]
    learnt = [f"reward {values['reward']:.3f}"]
    if turning:
        learnt.append(f"turning {sum(turning) / len(turning):.0%}")
    if "fork" in values:
        learnt.append(f"fork {values['fork']:.1f}")
    if values.get("kl"):
        learnt.append(f"kl {values['kl']:.2g}")
    if "clip_high" in values:
        learnt.append(f"clipped {values['clip_high'] + values['clip_low']:.0%}")
    if "moved" in values:
        learnt.append(f"moved {values['moved']:.2g}")
    if "ratio_dev" in values:
        learnt.append(f"ratio_dev {values['ratio_dev']:.1e}")
    seconds = values["seconds"]
    phases = ", ".join(f"{name} {values[key]:.1f}" for name, key in PHASES.items() if key in values)
    took = [f"{seconds:.1f} s ({phases})", f"{images / seconds:.3g} images/s"]
    took.append(f"left {duration((epochs - epoch) * seconds)}")
    head = f"epoch {epoch}/{epochs}  "
    return f"{head}{'  '.join(learnt)}\n{' ' * len(head)}{'  '.join(took)}"


def evaluation(epoch: int, scores: Mapping[str, float]) -> str:
    """A line for an evaluation: each score with its standard error."""
    parts = (
        f"{name.rpartition('/')[2]} {value:.3f} ± {scores[f'{name}_se']:.3f}"
        for name, value in scores.items()
        if not name.endswith("_se")
    )
    return f"held-out after epoch {epoch}: {'  '.join(parts)}"


def duration(seconds: float) -> str:
    """In the unit that suits it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
