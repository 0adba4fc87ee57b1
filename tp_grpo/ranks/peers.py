"""Which rank is gone: every rank beats in the store that brought them together, and one of each machine watches.

The watcher waits for no collective to fail, so it speaks over NCCL as well, which fails late and outside of Python.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

from torch import distributed

BEAT_S = 1.0
PATIENCE = 3  # beats that a rank may leave out
LEFT = 1 << 40  # added by a rank that leaves as all do


def own_name(rank: int) -> str:
    """Of this process, for people: GROUP_RANK is what torch's launcher calls the machine's number."""
    return f"rank {rank} on machine {os.environ.get('GROUP_RANK', '0')} ({socket.gethostname()})"


class Peers:
    """names: of every rank. Beats on a thread until the process ends or the store is gone."""

    def __init__(
        self, rank: int, names: list[str], timeout_s: float, store: distributed.Store | None = None
    ) -> None:
        """timeout_s: of the collectives, to be named; store: the process group's."""
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
        """Called where all ranks leave: nobody is missed from now on."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):
            self._store.add(_key(self.rank), LEFT)

    def explain(self, error: BaseException) -> str | None:
        """Whom the other ranks lost, in a line; None for an error that is not about that."""
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            return None
        silent = self._silent()
        if silent is None:
            return self._no_store()
        if silent:
            return f"{', '.join(silent)} no longer answers: it has stopped, or its machine or network is gone"
        said = " ".join(str(error).split())[:300]
        return (
            "the ranks lost each other though all are alive: one did not come in "
            f"runtime.timeout_s = {self.timeout_s:g} s, or has just failed by itself and says why ({said})"
        )

    def _no_store(self) -> str:
        return f"the store of machine 0 does not answer, and with it {self.names[0]}: that machine is gone"

    def _beat(self, watches: bool) -> None:
        try:
            while not self._stopped.is_set():
                for rank in range(len(self.names)) if watches else (self.rank,):
                    self._counts[rank] = self._store.add(_key(rank), int(rank == self.rank))
                self._stopped.wait(BEAT_S)
        except RuntimeError:  # the store has gone with its machine, or the run is over
            return

    def _watch(self) -> None:
        """Say who falls silent, once, and who is back. Counts looks, not seconds: who stood still blames nobody."""
        before, missed = [0] * len(self.names), [0] * len(self.names)
        while not self._stopped.wait(BEAT_S):
            now = list(self._counts)
            for rank, name in enumerate(self.names):
                alive = now[rank] != before[rank] or now[rank] >= LEFT
                if alive and missed[rank] > PATIENCE:
                    _say(f"{name} answers again")
                missed[rank] = 0 if alive else missed[rank] + 1
            before = now
            if (
                missed[self.rank] > PATIENCE
            ):  # our own beats do not arrive, so nothing is known of the others
                _say(self._no_store())
                return
            for rank, name in enumerate(self.names):
                if missed[rank] == PATIENCE + 1:
                    _say(
                        f"{name} has not answered for some seconds: it, its machine or network may be gone"
                    )

    def _silent(self) -> list[str] | None:
        """The ranks whose beat has stopped; None where the store itself does not answer."""
        counts: list[list[int]] = []

        def read() -> None:
            try:
                for wait_s in (0.0, PATIENCE * BEAT_S):
                    self._stopped.wait(wait_s)
                    counts.append(
                        [self._store.add(_key(rank), 0) for rank in range(len(self.names))]
                    )
            except RuntimeError:
                return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(4 * PATIENCE * BEAT_S)  # a store behind a dead link does not even fail
        if len(counts) < 2:
            return None
        return [
            name for name, before, after in zip(self.names, *counts, strict=True) if before == after
        ]


# Of this process; known here, for a Trainer whose loading fails is nobody's.
_LIVE: list[Peers] = []


def explain(error: BaseException) -> str | None:
    """`Peers.explain` of this process; None where it is alone."""
    return _LIVE[-1].explain(error) if _LIVE else None


def leave() -> None:
    """`Peers.close` of this process, if it has any."""
    while _LIVE:
        _LIVE.pop().close()


def _key(rank: int) -> str:
    return f"tp_grpo/beat/{rank}"


def _say(words: str) -> None:
    print(f"\nwarning: {words}", file=sys.stderr, flush=True)
