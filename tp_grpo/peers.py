"""Which rank is gone, when a collective fails: every rank beats in the store that brought them together."""

from __future__ import annotations

import os
import socket
import threading

from torch import distributed

BEAT_S = 1.0
PATIENCE = 3  # beats that a rank may leave out


def own_name(rank: int) -> str:
    """Of this process, for people: GROUP_RANK is what torch's launcher calls the machine's number."""
    return f"rank {rank} on machine {os.environ.get('GROUP_RANK', '0')} ({socket.gethostname()})"


class Peers:
    """names: of every rank. Beats on a thread until the process ends or the store is gone."""

    def __init__(self, rank: int, names: list[str]) -> None:
        self.names = names
        self._key = f"tp_grpo/beat/{rank}"
        self._store = distributed.distributed_c10d._get_default_store()
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def close(self) -> None:
        self._stopped.set()

    def explain(self, error: BaseException, timeout_s: float) -> str | None:
        """Whom the other ranks lost, in a line; None for an error that is not about that."""
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            return None
        silent = self._silent()
        if silent is None:
            return f"the store of machine 0 does not answer, and with it {self.names[0]}: that machine is gone"
        if silent:
            return f"{', '.join(silent)} no longer answers: it has stopped, or its machine or network is gone"
        said = " ".join(str(error).split())[:300]
        return (
            f"the ranks lost each other though all are alive: one did not come in runtime.timeout_s = {timeout_s:g} s, "
            f"or has just failed by itself and says why ({said})"
        )

    def _beat(self) -> None:
        try:
            while not self._stopped.is_set():
                self._store.add(self._key, 1)
                self._stopped.wait(BEAT_S)
        except RuntimeError:  # the store has gone with its machine, or the run is over
            return

    def _silent(self) -> list[str] | None:
        """The ranks whose beat has stopped; None where the store itself does not answer."""
        counts: list[list[int]] = []

        def read() -> None:
            try:
                for wait_s in (0.0, PATIENCE * BEAT_S):
                    self._stopped.wait(wait_s)
                    counts.append([self._store.add(f"tp_grpo/beat/{rank}", 0) for rank in range(len(self.names))])
            except RuntimeError:
                return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(4 * PATIENCE * BEAT_S)  # a store behind a dead link does not even fail
        if len(counts) < 2:
            return None
        return [name for name, before, after in zip(self.names, *counts, strict=True) if before == after]
