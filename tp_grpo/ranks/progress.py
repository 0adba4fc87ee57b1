"""What a run says while it works: bars on a terminal, now and then a plain line elsewhere, two lines an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")
Shown = TypeVar("Shown", covariant=True)
SILENCE = 60.0  # seconds between two plain lines of one phase


class Bar(Protocol[Shown]):
    """What `bar` gives: an iterable that can be told what to show beside it."""

    def __iter__(self) -> Iterator[Shown]: ...

    def set_postfix_str(self, s: str) -> None: ...


def epochs(start: int, stop: int) -> Bar[int]:
    """The epochs from `start` to `stop` - 1 with the time left for all; without a terminal, `summary` says that."""
    return (
        bar(range(start, stop), "run", unit="epochs", begun=start)
        if sys.stderr.isatty()
        else Silent(range(start, stop))
    )


def bar(
    items: Sequence[T], name: str, *, unit: str = "batches", each: int = 1, begun: int = 0
) -> Bar[T]:
    """`items` with how far they are, how many a second and the time left; plain lines where there is no terminal.

    unit: what is counted, of which an item is `each`; begun: items that were done in an earlier part of the run.
    """
    if not sys.stderr.isatty():
        return Lines(items, name, unit=unit, each=each)
    options = {
        "unit": f" {unit}",
        "unit_scale": each,
        "initial": begun,
        "total": begun + len(items),
    }
    made: Bar[T] = tqdm(items, desc=name, leave=False, dynamic_ncols=True, **options)
    return made


class Lines(Iterable[T]):
    """A phase that takes longer than a minute says once a minute how far it is."""

    def __init__(self, items: Sequence[T], name: str, *, unit: str, each: int) -> None:
        self.items, self.name, self.unit, self.each = items, name, unit, each

    def __iter__(self) -> Iterator[T]:
        begun = said = time.monotonic()
        for done, item in enumerate(self.items):
            now = time.monotonic()
            if now - said >= SILENCE and done:
                said, rate = now, done / (now - begun)
                left = duration((len(self.items) - done) / rate)
                count = f"{done * self.each}/{len(self.items) * self.each} {self.unit}"
                say(f"{self.name}: {count}, {rate * self.each:.3g} a second, {left} left")
            yield item

    def set_postfix_str(self, s: str) -> None:
        """A line has nothing beside it: the summary of the epoch says it."""


class Silent(Lines[T]):
    """For the ranks that do not speak."""

    def __init__(self, items: Sequence[T]) -> None:
        super().__init__(items, "", unit="", each=1)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


def say(text: str) -> None:
    """A line on standard output, above the bars; at once, also where that is a file."""
    tqdm.write(text)
    sys.stdout.flush()


def summary(epoch: int, epochs: int, values: Mapping[str, Any], images: int) -> str:
    """Two lines for an epoch, from its line of metrics.jsonl: what was learnt, and what it took.

    images: trajectories an epoch, over all ranks.
    """
    turning = [share for name, share in values.items() if name.startswith("turning_")]
    learnt = [f"reward {values['reward']:.3f}", f"turning {sum(turning) / len(turning):.0%}"]
    learnt += [f"kl {values['kl']:.2g}"] if values.get("kl") else []
    learnt += (
        [f"clipped {values['clip_high'] + values['clip_low']:.0%}"] if "clip_high" in values else []
    )
    learnt += [f"ratio_dev {values['ratio_dev']:.1e}"]
    seconds = values["seconds"]
    phases = ", ".join(
        f"{name} {values[field]:.1f}"
        for name, field in (
            ("sample", "seconds_rollout"),
            ("decode", "seconds_decode"),
            ("score wait", "seconds_score_wait"),
            ("update", "seconds_update"),
        )
        if field in values
    )
    took = f"{seconds:.1f} s ({phases})  {images / seconds:.3g} images/s  left {duration((epochs - epoch) * seconds)}"
    head = f"epoch {epoch}/{epochs}  "
    return f"{head}{'  '.join(learnt)}\n{' ' * len(head)}{took}"


def evaluation(epoch: int, scores: Mapping[str, float]) -> str:
    """A line for an evaluation: each score with its standard error."""
    names = [name for name in scores if not name.endswith("_se")]
    parts = (
        f"{name.rpartition('/')[2]} {scores[name]:.3f} ± {scores[f'{name}_se']:.3f}"
        for name in names
    )
    return f"held-out after epoch {epoch}: {'  '.join(parts)}"


def duration(seconds: float) -> str:
    """In the unit that suits it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
