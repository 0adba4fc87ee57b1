"""Where an epoch's seconds go, phase by phase, and what the phases did."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REST = "other"
Counts = dict[str, int]


class Clock:
    """Every second belongs to the innermost phase, or to `other`; `lap` reads and resets.

    synchronize: waits for the device, whose work would otherwise count for the next phase.
    total: adds the counts of all ranks.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        total: Callable[[Counts], Counts] = dict,
    ) -> None:
        self._synchronize, self._total, self._phases = synchronize, total, [REST]
        self._seconds: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._mark()
        self._phases.append(name)
        try:
            yield
        finally:
            self._mark()
            self._phases.pop()

    def count(self, name: str, number: int) -> None:
        self._counts[name] += number

    def lap(self) -> dict[str, float]:
        """{"seconds": all, "seconds_PHASE": parts that add up to it, counts}; a collective."""
        self._mark()
        seconds, counts = {REST: 0.0} | self._seconds, self._total(dict(self._counts))
        self._seconds, self._counts = {}, Counter()
        phases = {f"seconds_{name}": value for name, value in seconds.items()}
        return {"seconds": sum(seconds.values())} | phases | counts

    def _mark(self) -> None:
        self._synchronize()
        now, phase = time.perf_counter(), self._phases[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now
