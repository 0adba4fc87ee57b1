"""Stopping when asked to: the scheduler's SIGTERM and SIGUSR1, agreed on by all ranks; and the second Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tp_grpo.ranks.runtime import Runtime

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REMEMBERED = 3  # epochs that an estimate looks back on


class Preempted(RuntimeError):
    """The run was asked to stop and has stopped where it can go on from. The message says what was asked and done."""


class Preemption:
    """Any rank's signal stops all ranks at the same batch boundary, or after the epoch if that takes at most `grace`.

    grace: seconds from the signal that an epoch with its evaluation and checkpoint may still take; before an epoch has
    been timed nothing is known, and the run stops at once.
    """

    def __init__(self, runtime: Runtime, grace: float) -> None:
        self.runtime, self.grace = runtime, grace
        self.asked_by = 0  # the number of the signal
        self._asked_at = self._begun = 0.0
        self._evaluates = False
        self._epochs: deque[float] = deque(maxlen=REMEMBERED)
        self._evaluations: deque[float] = deque(maxlen=REMEMBERED)
        self._writes: deque[float] = deque(maxlen=REMEMBERED)
        self._writing = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the signals are taken note of. Only a process' main thread can; elsewhere nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: object) -> None:
        if not self.asked_by:
            self.asked_by, self._asked_at = number, time.monotonic()

    @contextmanager
    def epoch(self, *, evaluates: bool) -> Iterator[None]:
        """Time an epoch, from its first batch until its checkpoint is begun; evaluates: whether it is evaluated."""
        self._begun, self._evaluates = time.monotonic(), evaluates
        yield
        took = time.monotonic() - self._begun
        self._epochs.append(took - (self._evaluations[-1] if evaluates else 0.0))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation, the epoch's or one that is made up for."""
        begun = time.monotonic()
        yield
        self._evaluations.append(time.monotonic() - begun)

    @contextmanager
    def write(self) -> Iterator[None]:
        """Time a checkpoint's way to the disk, on whatever thread."""
        begun, self._writing = time.monotonic(), True
        try:
            yield
        finally:
            self._writes.append(time.monotonic() - begun)
            self._writing = False

    def boundary(self) -> None:
        """Called by all ranks between two batches. Raises Preempted when the epoch would take too long."""
        asked, late, write = self.runtime.all_max([self.asked_by, self._late(), self._write()])
        if asked and late + write > 0:
            raise Preempted(
                f"{signal.Signals(int(asked)).name}: stopped at once, the epoch would have taken too long"
            )

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items, a boundary before each; all ranks have equally many."""
        for item in items:
            self.boundary()
            yield item

    def between_epochs(self) -> None:
        """Called by all ranks after a checkpoint. Raises Preempted when any was asked to stop."""
        (asked,) = self.runtime.all_max([self.asked_by])
        if asked:
            raise Preempted(f"{signal.Signals(int(asked)).name}: stopped after the epoch")

    def _late(self) -> float:
        """Seconds from the end of the grace to that of the epoch, infinite where nothing is known; of who was asked."""
        if not self.asked_by:
            return -math.inf
        if not self._epochs or (self._evaluates and not self._evaluations):
            return math.inf
        now = time.monotonic()
        needed = max(self._epochs) + (max(self._evaluations) if self._evaluates else 0.0)
        left = max(0.0, needed - (now - self._begun))
        return now + left - (self._asked_at + self.grace)

    def _write(self) -> float:
        """Seconds from an epoch's end to that of its checkpoint, known on rank 0; infinite while the first is made."""
        return math.inf if self._writing and not self._writes else max((*self._writes, 0.0))


def stop_on_second_ctrl_c(said: str) -> None:
    """From now on a second Ctrl-C ends the process at once with code 130, even where Python code does not run.

    For a first one is an exception, which waits for a hanging collective or a scorer's call. said: to standard error.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def count() -> None:
        pressed = 0
        with (
            reader,
            writer,
        ):  # held here, for the signals write to one of them as long as the process lives
            while pressed < 2:
                pressed += reader.recv(1) == bytes([signal.SIGINT])
            os.write(2, f"\n{said}\n".encode())
            os._exit(130)

    threading.Thread(target=count, name="ctrl-c", daemon=True).start()
