"""Stopping on request: SIGTERM or SIGUSR1, agreed on by all ranks; and a second Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tp_grpo.ranks.runtime import Runtime

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(RuntimeError):
    """A signal stopped the run where it can resume. The message names the signal and the place."""


class Preemption:
    """Any rank's signal stops all ranks after the epoch if `grace` allows, else at the next batch.

    grace: seconds from the signal in which the epoch, its evaluation and its checkpoint must end.
    They are expected to last as long as the last ones; if none was timed, the run stops at once.
    """

    def __init__(self, runtime: Runtime, grace: float) -> None:
        self.runtime, self.grace = runtime, grace
        self.signal = 0  # its number; 0 for none
        self._signalled_at = self._begun = 0.0
        self._evaluates = False
        self._epoch_s = self._evaluation_s = math.inf
        self._write_s = math.inf if runtime.is_main else 0.0  # rank 0 writes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals are noted, if this is the main thread; no other thread can."""
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
        if not self.signal:
            self.signal, self._signalled_at = number, time.monotonic()

    @contextmanager
    def epoch(self, *, evaluates: bool) -> Iterator[None]:
        """Time an epoch, from its first batch until its checkpoint begins to be written."""
        self._begun, self._evaluates = time.monotonic(), evaluates
        yield
        evaluation_s = self._evaluation_s if evaluates else 0.0
        self._epoch_s = time.monotonic() - self._begun - evaluation_s

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation."""
        begun = time.monotonic()
        yield
        self._evaluation_s = time.monotonic() - begun

    @contextmanager
    def write(self) -> Iterator[None]:
        """Time the writing of a checkpoint, on whatever thread."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._write_s = time.monotonic() - begun

    def boundary(self) -> None:
        """Called by all ranks between batches. Raises Preempted if the grace is too short."""
        number, passed, left = self.runtime.all_max([self.signal, self._passed(), self._left()])
        if number and passed + left > self.grace:
            raise Preempted(
                f"{signal.Signals(int(number)).name}: stopped at once, "
                "the epoch would have taken too long"
            )

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a boundary before each; every rank has equally many."""
        for item in items:
            self.boundary()
            yield item

    def between_epochs(self) -> None:
        """Called by all ranks after a checkpoint. Raises Preempted if any was signalled."""
        (number,) = self.runtime.all_max([self.signal])
        if number:
            raise Preempted(f"{signal.Signals(int(number)).name}: stopped after the epoch")

    def _passed(self) -> float:
        """Seconds since the signal; 0 without one."""
        return time.monotonic() - self._signalled_at if self.signal else 0.0

    def _left(self) -> float:
        """Seconds until the epoch's checkpoint is on the disk; infinite if none was timed."""
        needed = self._epoch_s + (self._evaluation_s if self._evaluates else 0.0)
        return max(0.0, needed - (time.monotonic() - self._begun)) + self._write_s


def stop_on_second_ctrl_c(words: str) -> None:
    """From now on a second Ctrl-C prints `words` and ends the process at once, with code 130.

    The first raises KeyboardInterrupt, which waits for a hanging collective or a scorer's call; the
    second is read by a thread and needs no Python on the main one.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def count() -> None:
        pressed = 0
        with reader, writer:  # the signal handler writes to them as long as the process lives
            while pressed < 2:
                pressed += reader.recv(1) == bytes([signal.SIGINT])
            os.write(2, f"\n{words}\n".encode())
            os._exit(130)

    threading.Thread(target=count, name="ctrl-c", daemon=True).start()
