"""One scorer on its own thread: calls, retries, bisection, placement. A failed score is NaN.

What an exception of the scorer costs:

- `Unavailable`, `ConnectionError`, `TimeoutError`: the call is retried for `patience` seconds with
  exponential backoff and jitter. Then its images are NaN, and later calls are tried only once until
  one succeeds.
- `MemoryError`, CUDA out of memory: later calls are half as large; a single image is NaN.
- `TypeError`, `AttributeError`, `NameError`, `ImportError`, `NotImplementedError`, or anything but
  one number per image: a programming error. The thread is broken, all later scores are NaN, and
  `RewardSet.settle` stops the run.
- Any other, `ValueError` too: the call is halved until the images that cause it are found; they are
  NaN. Libraries raise ValueError for one odd image, and a run that stopped there would stop there
  again on every resume. The user's mistakes are ValueErrors when the scorer is built or checked.

Equal images of a batch are scored once. A scorer of groups gets every image, and whole groups: a
call is halved between groups, and where one fails all of its images are NaN. The one image of a
group without others is NaN too, for there is nothing to compare it with.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reward_models import NotScores, Scorer, Scores, Unavailable
from tp_grpo.rewards import scorer_options
from tp_grpo.rewards.batch import Batch
from tp_grpo.rewards.scorer_options import ScorerOptions

UNAVAILABLE = (Unavailable, ConnectionError, TimeoutError)
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
PROGRAMMING = (TypeError, AttributeError, NameError, ImportError, NotImplementedError, NotScores)
NO_NUMBER = "the scorer itself gave NaN or infinity as the score"
ALONE = "it compares the images of a group, and this image is the only one of its group"
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, before jitter
# Ranks share the global seed, and would all retry at the same moment.
_RANDOM = random.SystemRandom()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Whether a thread is broken for good, its last error, its extras' names, its first error."""

    broken: bool
    error: str
    extras: tuple[str, ...]
    first: str = ""


class Columns:
    """Score and extras of n images, fp32, NaN until they are known."""

    def __init__(self, n: int, extras: tuple[str, ...]) -> None:
        self.score = np.full(n, np.nan, np.float32)
        self.extras = {name: self.score.copy() for name in extras}

    def fill(self, rows: np.ndarray, scores: Scores) -> int:
        """Infinite values become NaN. Returns how many images have no score."""
        self.score[rows] = _finite(scores.score)
        for name, values in scores.extras.items():
            column = self.extras.setdefault(name, np.full_like(self.score, np.nan))
            column[rows] = _finite(values)
        return int(np.isnan(self.score[rows]).sum())

    def repeat(self, inverse: np.ndarray) -> Scores:
        """Row inverse[i] as the i-th, (n,)."""
        extras = {name: column[inverse] for name, column in self.extras.items()}
        return Scores(self.score[inverse], extras)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


class ScorerThread:
    """Scores batches one at a time, in order, so that the scorer needs no lock.

    On a GPU the scorer has its own CUDA stream.
    """

    def __init__(
        self,
        name: str,
        options: ScorerOptions,
        sleep: Callable[[float], Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """sleep, now: a clock for tests, in seconds; the default sleep ends with `close`."""
        self.name, self.options = name, options
        self.largest = options.batch_size or sys.maxsize  # images a call
        self.broken, self.error, self.first = False, "", ""  # last error and first
        self.extras: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._sleep, self._now = sleep or self._stop.wait, now
        self._reachable = True
        self._waiting, self._count = 0, threading.Lock()
        local = options.placement in ("", "cuda", "offload") and not options.remote
        self._gpu = scorer_options.gpu() if local else None
        cuda = self._gpu and self._gpu.type == "cuda"
        self._stream = torch.cuda.Stream(self._gpu) if cuda else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rewards-{name}")

    def place(self, scorer: Scorer) -> None:
        """Move the scorer's model to its device. Raises ValueError if it cannot go to the GPU."""
        placement = self.options.placement
        if hasattr(scorer, "to"):
            scorer.to("cpu" if placement == "offload" or self._gpu is None else self._gpu)
        elif placement in ("cuda", "offload"):
            field = f"rewards.scorers.{self.name}.placement"
            raise ValueError(f"{field} = {placement!r}: this scorer has no `to(device)`")

    def submit(self, scorer: Scorer, batch: Batch) -> Future[Scores]:
        """Start scoring; a failed score is NaN, and the future never raises."""
        with self._count:
            self._waiting += 1
        return self._thread.submit(self._score, scorer, batch)

    def state(self) -> State:
        """For the other ranks."""
        return State(self.broken, self.error, self.extras, self.first)

    def close(self) -> None:
        """Cancel queued batches without waiting; the running call finishes, retry delays end."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def report(self, error: str, images: int) -> None:
        """Keep why images have no score, and log the first; max_failed counts them all."""
        if not self.error:
            message = "rewards.scorers.%s: no score for %d images: %s. Later ones are only counted"
            _LOG.warning(message, self.name, images, error)
        self._keep(error)

    def _keep(self, error: str) -> None:
        self.first, self.error = self.first or error, error

    def _score(self, scorer: Scorer, batch: Batch) -> Scores:
        inverse = np.arange(len(batch.images))
        columns = Columns(len(inverse), self.extras)
        try:
            first, inverse = batch.distinct
            columns = Columns(len(first), self.extras)
            with torch.cuda.stream(self._stream):
                self._fill(scorer, batch, first, columns)
                self._rest(scorer)
        except Exception as error:  # if this rank raised, the others would wait for it forever
            self._break(error)
        self.extras = tuple(columns.extras)
        return columns.repeat(inverse)

    def _fill(self, scorer: Scorer, batch: Batch, first: np.ndarray, columns: Columns) -> None:
        """Score the rows `first` of the batch into the columns, halving the calls that fail."""
        units = batch.units
        if batch.groups is not None:
            if alone := sum(len(unit) == 1 for unit in units):
                self.report(ALONE, alone)
            units = [unit for unit in units if len(unit) > 1]
        todo = [units] if units else []
        while todo and not self.broken and not self._stop.is_set():
            units = todo.pop()
            fitting = max(1, int((np.cumsum([len(u) for u in units]) <= self.largest).sum()))
            units, later = units[:fitting], units[fitting:]
            if later:
                todo.append(later)
            rows = np.concatenate(units)
            try:
                scores = self._call(scorer, batch.take(first[rows]))
            except PROGRAMMING as error:
                return self._break(error)
            except UNAVAILABLE as error:
                self.report(_words(error), len(rows))
            except Exception as error:
                if isinstance(error, OUT_OF_MEMORY):
                    self._shrink(len(rows), len(units[0]))
                if len(units) == 1:
                    self.report(_words(error), len(rows))
                else:
                    todo += [units[len(units) // 2 :], units[: len(units) // 2]]
            else:
                if missing := columns.fill(rows, scores):
                    self.report(scores.reason or NO_NUMBER, missing)
        if todo and self._stop.is_set():
            self._keep("the run closed its scorers before these images were scored")

    def _call(self, scorer: Scorer, part: tuple[Any, ...]) -> Scores:
        """One call, retried while the scorer is unavailable."""
        end = self._now() + (self.options.patience if self._reachable else 0)
        for attempt in itertools.count():
            try:
                if self.options.placement == "offload":
                    scorer.to(self._gpu)  # type: ignore[attr-defined]
                returned = scorer(*part)
                self._reachable = True
                return Scores.read(returned, len(part[1]))
            except UNAVAILABLE as error:
                left = end - self._now()
                if left <= 0 or self._stop.is_set():
                    self._reachable = False
                    raise
                if not attempt:
                    message = "rewards.scorers.%s: %s. Retrying for %.0f s (its option patience)"
                    _LOG.warning(message, self.name, error, left)
                self._sleep(min(backoff(attempt), left))
        raise AssertionError("a call returns or raises")

    def _rest(self, scorer: Scorer) -> None:
        """Free the GPU's memory unless the next batch already waits."""
        with self._count:
            self._waiting -= 1
            idle = not self._waiting
        if idle and self.options.placement == "offload":
            scorer.to("cpu")  # type: ignore[attr-defined]
            self._empty_cache()

    def _shrink(self, failed: int, least: int) -> None:
        """least: images that no call may split."""
        self.largest = max(least, failed // 2)
        self._empty_cache()
        message = "rewards.scorers.%s: out of memory with %d images a call; continuing with %d"
        _LOG.warning(message, self.name, failed, self.largest)

    def _empty_cache(self) -> None:
        if self._stream:
            torch.cuda.empty_cache()  # the trainer's stream cannot reuse what this one has freed

    def _break(self, error: Exception) -> None:
        if not self._stop.is_set():
            _LOG.error("the scorer %r is broken", self.name, exc_info=error)
        self.broken = True
        self._keep(_words(error))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def backoff(attempt: int) -> float:
    """Seconds before try `attempt` + 2: FIRST_WAIT, doubled up to LONGEST_WAIT, x [0.5, 1]."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * _RANDOM.uniform(0.5, 1)
