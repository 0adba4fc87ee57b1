"""Detects lost ranks: each rank counts up in the shared store; one rank per machine watches.

The watcher needs no collective to fail: NCCL's fail late, and outside Python.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

from torch import distributed

BEAT_S = 1.0
PATIENCE = 3  # beats that a rank may miss
LEFT = 1 << 40  # added by a rank that leaves with all others
_NO_STORE = "the store of machine 0 does not answer, and with it {}: that machine is gone"


def rank_name(rank: int) -> str:
    """Name of this process in messages; torch's launcher numbers machines by GROUP_RANK."""
    return f"rank {rank} on machine {os.environ.get('GROUP_RANK', '0')} ({socket.gethostname()})"


class Peers:
    """Beats on a thread until the process ends or the store is gone."""

    def __init__(
        self, rank: int, names: list[str], timeout_s: float, store: distributed.Store | None = None
    ) -> None:
        """names: one per rank; timeout_s: quoted in messages; store: default, the group's."""
        self.rank, self.names, self.timeout_s = rank, names, timeout_s
        self._store = store or distributed.distributed_c10d._get_default_store()
        self._counts = [0] * len(names)
        self._stopped = threading.Event()
        watches = os.environ.get("LOCAL_RANK", "0") == "0"
        threading.Thread(target=self._beat, args=(watches,), name="beat", daemon=True).start()
        if watches:
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
        _LIVE.append(self)

    def close(self) -> None:
        """Called where all ranks leave; silent ranks are no longer reported."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):
            self._store.add(_key(self.rank), LEFT)

    def explain(self, error: BaseException) -> str | None:
        """Which ranks are lost, in a line; None for an error that is not about that."""
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            return None
        silent = self._silent()
        if silent is None:
            return _NO_STORE.format(self.names[0])
        if silent:
            names = ", ".join(silent)
            return f"{names} no longer answers: it has stopped, or its machine or network is gone"
        return (
            "the ranks lost each other though all are alive: one did not arrive within "
            f"runtime.timeout_s = {self.timeout_s:g} s, or failed by itself and says why "
            f"({' '.join(str(error).split())[:300]})"
        )

    def _beat(self, watches: bool) -> None:
        ranks = range(len(self.names)) if watches else (self.rank,)
        try:
            while not self._stopped.is_set():
                for rank in ranks:
                    self._counts[rank] = self._store.add(_key(rank), int(rank == self.rank))
                self._stopped.wait(BEAT_S)
        except RuntimeError:  # the store has gone with its machine, or the run is over
            return

    def _watch(self) -> None:
        """Report who falls silent, once, and who is back.

        Misses are counted in polls, so a paused watcher blames nobody.
        """
        before, missed = [0] * len(self.names), [0] * len(self.names)
        while not self._stopped.wait(BEAT_S):
            now = list(self._counts)
            for rank, name in enumerate(self.names):
                alive = now[rank] != before[rank] or now[rank] >= LEFT
                if alive and missed[rank] > PATIENCE:
                    _warn(f"{name} answers again")
                missed[rank] = 0 if alive else missed[rank] + 1
            before = now
            if missed[self.rank] > PATIENCE:  # our beats do not arrive: the others are unknown
                _warn(_NO_STORE.format(self.names[0]))
                return
            for rank, name in enumerate(self.names):
                if missed[rank] == PATIENCE + 1:
                    gone = "it, its machine or network may be gone"
                    _warn(f"{name} has not answered for some seconds: {gone}")

    def _silent(self) -> list[str] | None:
        """The ranks whose beat has stopped; None if the store itself does not answer."""
        counts: list[list[int]] = []

        def read() -> None:
            with contextlib.suppress(RuntimeError):
                for wait_s in (0.0, PATIENCE * BEAT_S):
                    self._stopped.wait(wait_s)
                    counts.append([self._store.add(_key(i), 0) for i in range(len(self.names))])

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(4 * PATIENCE * BEAT_S)  # a store behind a dead link does not even fail
        if len(counts) < 2:
            return None
        pairs = zip(self.names, *counts, strict=True)
        return [name for name, before, after in pairs if before == after]


# This process's; global, because an ending needs them where no Trainer was built.
_LIVE: list[Peers] = []


def explain(error: BaseException) -> str | None:
    """`Peers.explain` of this process; None if it is alone."""
    return _LIVE[-1].explain(error) if _LIVE else None


def leave() -> None:
    """`Peers.close` of this process, if it has any."""
    while _LIVE:
        _LIVE.pop().close()


def _key(rank: int) -> str:
    return f"tp_grpo/beat/{rank}"


def _warn(words: str) -> None:
    print(f"\nwarning: {words}", file=sys.stderr, flush=True)
