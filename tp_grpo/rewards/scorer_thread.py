"""One scorer on a thread of its own: chunks, retries, bisection, placement. What fails becomes NaN, never a number.

What becomes of an exception of the scorer:

- `Unavailable`, `ConnectionError`, `TimeoutError`: the call is tried again for `patience` seconds, with exponential
  backoff and jitter; then its images are NaN, and later calls are tried only once until one goes well.
- `MemoryError`, CUDA out of memory: calls are half as large from then on; one image alone is NaN.
- `TypeError`, `AttributeError`, `NameError`, `ImportError`, `NotImplementedError`, or values of a wrong shape: a
  programming error. The thread is broken, all else is NaN, and `RewardSet.settle` stops the run.
- Any other, `ValueError` too: the call is halved until the images that it is about are found; those are NaN. For
  libraries raise ValueError for one odd image, and a run that stops at an image stops there again whenever it is
  resumed. What the user got wrong is a ValueError earlier: when the scorer is built or its prompts are checked.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from reward_models import Metadata, Scorer, Scores, Unavailable

UNAVAILABLE = (Unavailable, ConnectionError, TimeoutError)
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
PROGRAMMING = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)
PLACEMENTS = ("cuda", "offload", "cpu", "remote")
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, before jitter
_RANDOM = (
    random.SystemRandom()
)  # ranks share the global seed: theirs would all knock at the same moment
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """images (n, H, W, 3) uint8, prompts and metadata of length n."""

    images: np.ndarray
    prompts: list[str]
    metadata: list[Metadata]

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The first of each set of equal (image, prompt, metadata), (m,), and which of them each one equals, (n,)."""
        position: dict[bytes, int] = {}
        keys = [
            _key(*sample) for sample in zip(self.images, self.prompts, self.metadata, strict=True)
        ]
        inverse = np.array(
            [position.setdefault(key, len(position)) for key in keys], dtype=np.int64
        )
        return np.unique(inverse, return_index=True)[1], inverse

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, list[str], list[Metadata]]:
        return self.images[rows], [self.prompts[i] for i in rows], [self.metadata[i] for i in rows]


def _key(image: np.ndarray, prompt: str, metadata: Metadata) -> bytes:
    words = hashlib.blake2b(repr((image.shape, prompt, metadata)).encode())
    return hashlib.blake2b(np.ascontiguousarray(image).data, key=words.digest()).digest()


@dataclass(frozen=True)
class ScorerThreadOptions:
    """What the config may say of any scorer, beside its weight. Raises ValueError for what makes no sense.

    batch_size: images a call, 0 for a whole batch. placement: where its model is; `offload` moves it to the GPU while
    it scores; "" is the GPU where there is one. remote: URL of a reward server. patience: seconds that an unavailable
    scorer is tried again; less than runtime.timeout_s, or the other ranks give up first.
    """

    batch_size: int = 0
    placement: str = ""
    remote: str = ""
    patience: float = 600.0

    def check(self, name: str) -> None:
        """Raises ValueError, naming the field, the value and what would do."""
        where = f"rewards.scorers.{name}"
        if (
            isinstance(self.batch_size, bool)
            or not isinstance(self.batch_size, int)
            or self.batch_size < 0
        ):
            raise ValueError(
                f"{where}.batch_size = {self.batch_size!r} is not a whole number of at least 0"
            )
        if not is_number(self.patience) or self.patience < 0:
            raise ValueError(
                f"{where}.patience = {self.patience!r} is not a number of seconds, of at least 0"
            )
        if not isinstance(self.remote, str):
            raise ValueError(f"{where}.remote = {self.remote!r} is not the URL of a reward server")
        if self.placement and self.placement not in PLACEMENTS:
            raise ValueError(
                f"{where}.placement = {self.placement!r} is not one of {', '.join(PLACEMENTS)}"
            )
        if self.placement == "remote" and not self.remote:
            raise ValueError(
                f"{where}.placement = 'remote' needs {where}.remote, the URL of a reward server"
            )
        if self.remote and self.placement not in ("", "remote"):
            raise ValueError(
                f"{where}.placement = {self.placement!r}, but {where}.remote = {self.remote!r}: drop one"
            )
        if self.placement in ("cuda", "offload") and gpu() is None:
            raise ValueError(
                f"{where}.placement = {self.placement!r} needs a CUDA GPU; 'cpu' does without"
            )


def gpu() -> torch.device | None:
    """This process' CUDA device. Asked on the main thread: another thread's current device is always the first."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


@dataclass(frozen=True)
class State:
    """What a thread has seen: whether it is broken for good, its last error in words, and the names of its extras."""

    broken: bool
    error: str
    extras: tuple[str, ...]


class Columns:
    """The score and extras of n images, fp32, NaN until they are known."""

    def __init__(self, n: int, extras: tuple[str, ...]) -> None:
        self.score = np.full(n, np.nan, np.float32)
        self.extras = {name: np.full(n, np.nan, np.float32) for name in extras}

    def fill(self, rows: np.ndarray, result: Scores) -> None:
        """Raises ValueError for a wrong shape; what is not finite stays NaN."""
        self.score[rows] = _finite(result.score, len(rows))
        for name, values in result.extras.items():
            column = self.extras.setdefault(name, np.full(len(self.score), np.nan, np.float32))
            column[rows] = _finite(values, len(rows))

    def repeat(self, inverse: np.ndarray) -> Scores:
        return Scores(
            self.score[inverse], {name: column[inverse] for name, column in self.extras.items()}
        )


def _finite(values: Any, n: int) -> np.ndarray:
    column = np.array(values, dtype=np.float32)
    if column.shape != (n,):
        raise ValueError(f"it gave values of shape {tuple(column.shape)} for {n} images")
    return np.where(np.isfinite(column), column, np.nan)


class ScorerThread:
    """The thread of one scorer: batches one after another, in the order they come; it is the scorer's lock as well.

    On a GPU the scorer has a CUDA stream of its own. `sleep` waits for so many seconds, `now` tells them.
    """

    def __init__(
        self,
        name: str,
        options: ScorerThreadOptions,
        sleep: Callable[[float], Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.options = options
        self.largest = options.batch_size or sys.maxsize  # images a call
        self.broken = False
        self.error = ""
        self.extras: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._sleep, self._now = sleep or self._stop.wait, now
        self._reachable = True
        self._waiting, self._count = 0, threading.Lock()
        self._gpu = (
            gpu() if options.placement in ("", "cuda", "offload") and not options.remote else None
        )
        self._stream = (
            torch.cuda.Stream(self._gpu) if self._gpu and self._gpu.type == "cuda" else None
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rewards-{name}")

    def place(self, scorer: Scorer) -> None:
        """Put the scorer's model where it is to be. Raises ValueError when it has none and is to be on a GPU."""
        offload = self.options.placement == "offload"
        if hasattr(scorer, "to"):
            scorer.to("cpu" if offload or self._gpu is None else self._gpu)
        elif self.options.placement in ("cuda", "offload"):
            raise ValueError(
                f"rewards.scorers.{self.name}.placement = {self.options.placement!r}: this scorer has no `to(device)`"
            )

    def submit(self, scorer: Scorer, batch: Batch) -> Future[Scores]:
        """Start scoring; the result is NaN where there was none to be had. The future does not raise."""
        with self._count:
            self._waiting += 1
        return self._thread.submit(self._score, scorer, batch)

    def state(self) -> State:
        return State(self.broken, self.error, self.extras)

    def close(self) -> None:
        """Drop what is queued, wait for nothing; a call in work is finished, a wait for the next try is not."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score(self, scorer: Scorer, batch: Batch) -> Scores:
        inverse = np.arange(len(batch.images))
        columns = Columns(len(inverse), self.extras)
        try:
            first, inverse = batch.distinct
            columns = Columns(len(first), self.extras)
            with torch.cuda.stream(self._stream):
                self._fill(scorer, batch, first, columns)
                self._rest(scorer)
        except (
            Exception
        ) as error:  # a rank that raised here would leave the others waiting for its scores
            self._break(error)
        self.extras = tuple(columns.extras)
        return columns.repeat(inverse)

    def _fill(self, scorer: Scorer, batch: Batch, first: np.ndarray, columns: Columns) -> None:
        """Score the images `first` of the batch into the columns, halving what fails."""
        todo = [np.arange(len(first))]
        while todo and not self.broken and not self._stop.is_set():
            rows = todo.pop()
            rows, later = rows[: self.largest], rows[self.largest :]
            if len(later):
                todo.append(later)
            try:
                result = self._call(scorer, batch.take(first[rows]))
            except PROGRAMMING as error:
                return self._break(error)
            except UNAVAILABLE as error:
                self.tell(words(error), len(rows))
            except Exception as error:
                if isinstance(error, OUT_OF_MEMORY):
                    self._shrink(len(rows))
                if len(rows) == 1:
                    self.tell(words(error), 1)
                else:
                    todo += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
            else:
                columns.fill(rows, result)

    def _call(self, scorer: Scorer, part: tuple[np.ndarray, list[str], list[Metadata]]) -> Scores:
        """One call, tried again while the scorer is unavailable."""
        end = self._now() + (self.options.patience if self._reachable else 0)
        for attempt in itertools.count():
            try:
                if self.options.placement == "offload":
                    scorer.to(self._gpu)  # type: ignore[attr-defined]
                result = scorer(*part)
                self._reachable = True
                return result
            except UNAVAILABLE as error:
                left = end - self._now()
                if left <= 0 or self._stop.is_set():
                    self._reachable = False
                    raise
                if not attempt:
                    said = (
                        "rewards.scorers.%s: %s. It is tried again for %.0f s (its option patience)"
                    )
                    _LOG.warning(said, self.name, error, left)
                self._sleep(min(backoff(attempt), left))
        raise AssertionError("a call returns or raises")

    def _rest(self, scorer: Scorer) -> None:
        """Give the GPU's memory back, unless the next batch waits already."""
        with self._count:
            self._waiting -= 1
            idle = not self._waiting
        if idle and self.options.placement == "offload":
            scorer.to("cpu")  # type: ignore[attr-defined]
            if self._stream:
                torch.cuda.empty_cache()  # what this stream has freed is of no use to the trainer's

    def _shrink(self, failed: int) -> None:
        self.largest = max(1, failed // 2)
        if self._stream:
            torch.cuda.empty_cache()
        said = "rewards.scorers.%s: out of memory with %d images a call; going on with %d"
        _LOG.warning(said, self.name, failed, self.largest)

    def tell(self, error: str, images: int) -> None:
        """Why images have no score: the first time is told, the rest are counted by max_failed."""
        if not self.error:
            said = "rewards.scorers.%s: no score for %d images: %s. Later ones are only counted"
            _LOG.warning(said, self.name, images, error)
        self.error = error

    def _break(self, error: Exception) -> None:
        if not self._stop.is_set():
            _LOG.error("the scorer %r cannot go on", self.name, exc_info=error)
        self.broken, self.error = True, words(error)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def backoff(attempt: int) -> float:
    """Seconds before try number attempt + 2: doubling from FIRST_WAIT to LONGEST_WAIT, times a jitter in [0.5, 1]."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * _RANDOM.uniform(0.5, 1)


def split_options(given: Mapping[str, Any]) -> tuple[ScorerThreadOptions, dict[str, Any]]:
    """The thread's options, and the scorer's own."""
    known = ScorerThreadOptions.__dataclass_fields__.keys() & given.keys()
    return ScorerThreadOptions(**{key: given[key] for key in known}), {
        key: given[key] for key in given if key not in known
    }
