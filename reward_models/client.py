"""A scorer of reward servers (`python -m reward_models.server`), called like a local one."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from reward_models.base import Metadata, Scores, Unavailable
from reward_models.connection import addresses, check_remote
from reward_models.options import environment_number, header_value
from reward_models.remote import Refused, RemoteServer

__all__ = ["Refused", "RemoteScorer"]

_LOG = logging.getLogger(__name__)


class RemoteScorer:
    """The scorer `name` of one reward server or of several that score alike. Threads may share one.

    A batch is cut into requests of `batch_size` images; each server gets up to `in_flight` of them
    at once, the next when it has answered. The cut depends on neither the servers nor their number,
    so the scores do not either. A request goes to the server number RANK, from the environment,
    modulo their number first, so that the ranks of a run begin with different ones.

    A server that does not answer or has no room is left out, and the others take over its requests,
    until it answers a probe. If none answers, all are asked again at the next call.

    The servers are first contacted by `check` or the first batch.

    url: of the server; several as a list, or in one text with commas.
    token: the servers' token; by default the environment variable REWARD_TOKEN.
    timeout: seconds without a byte of an answer; includes the time queued behind other batches.
    batch_size: images per request. in_flight: requests at once to one server.
    png: send PNG files, which takes time here and saves it on a slow network.

    Raises ValueError for a url that is not an address or is named twice, for no url, for numbers
    that are not above 0, for a token that is no line of ASCII, and if RANK is no number.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        name: str,
        token: str = "",
        timeout: float = 300.0,
        png: bool = False,
        batch_size: int = 16,
        in_flight: int = 2,
    ) -> None:
        example = "http://127.0.0.1:8090"
        self.urls = addresses(name, "remote", url, example)
        numbers = {"timeout": timeout, "batch_size": batch_size, "in_flight": in_flight}
        for address in self.urls:
            check_remote(name, "remote", address, example, **numbers)
        self.name, self.batch_size, self.in_flight = name, batch_size, in_flight
        where = "token" if token else "the environment's REWARD_TOKEN"
        token = header_value(name, where, token or os.environ.get("REWARD_TOKEN", ""))
        try:
            servers = [RemoteServer(each, name, token, timeout, png) for each in self.urls]
        except ImportError as error:
            needs = "a remote scorer needs httpx: pip install 'tp_grpo[server]'"
            raise ValueError(f"{name}: {needs}") from error
        start = environment_number(name, "RANK", 0) % len(servers)
        self.servers = servers[start:] + servers[:start]  # in the order in which they are asked

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """Raises Unavailable when no server answers or has room, RuntimeError with a server's
        message when the scorer failed on these images, and Refused when the code or the settings
        are wrong.
        """
        if len(self.servers) > 1:  # a single one is asked in any case
            for server in self.servers:
                server.probe()
        work = _Work(images, prompts, metadata, self.batch_size)
        while work.todo:
            left = [server for server in self.servers if server not in work.failed]
            if not left:
                raise Unavailable("; ".join(str(work.failed[each]) for each in self.servers))
            awake = [server for server in left if server.awake]
            self._share(work, awake or left)
        return _join(work.parts)

    def _share(self, work: _Work, servers: list[RemoteServer]) -> None:
        """Let the servers do the work; what a failing one leaves may remain.

        Raises the exception of the first request that no server could answer.
        """
        turns = (servers * self.in_flight)[: len(work.todo)]
        if len(turns) == 1:
            self._serve(turns[0], work)
        else:
            with ThreadPoolExecutor(len(turns), thread_name_prefix=f"remote-{self.name}") as pool:
                list(pool.map(lambda server: self._serve(server, work), turns))
        if work.errors:
            raise work.errors[min(work.errors)]

    def _serve(self, server: RemoteServer, work: _Work) -> None:
        """Send request after request to the server, until none is left or it fails."""
        while server not in work.failed and (taken := work.take()) is not None:
            number, batch = taken
            try:
                work.parts[number] = server.score(*batch)
            except Unavailable as error:
                work.give_back(number, server, error)
                if server.rest(error) and len(self.servers) > 1:
                    _LOG.warning("%s; left out until it answers again", error)
            except Exception as error:
                work.errors[number] = error
            else:
                server.wake()

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Ask all servers before a run which scorers they have; prompts and metadata are only
        checked with the first batch.

        Raises Unavailable when none answers, and ValueError for a wrong token, a scorer that is
        not served there, or a server of another kind. If some answer, the others are left out with
        a warning. Servers that built the scorer with different options get a warning too.
        """
        with ThreadPoolExecutor(len(self.servers)) as pool:
            answers = list(pool.map(_options, self.servers))
        asked = list(zip(self.servers, answers, strict=True))
        away = [(server, error) for server, error in asked if isinstance(error, Unavailable)]
        if len(away) == len(asked):
            raise Unavailable("; ".join(str(error) for _, error in away))
        for server, error in away:
            server.rest(error)
            message = "%s. The run begins with the other %d of %d servers"
            _LOG.warning(message, error, len(asked) - len(away), len(asked))
        (one, first), *others = [each for each in asked if each not in away]
        for server, options in others:
            if options != first:
                message = "%s: %s has the options %s, %s has %s; their scores may differ"
                _LOG.warning(message, self.name, one.url, first, server.url, options)

    def close(self) -> None:
        """Close this process's connections."""
        for server in self.servers:
            server.close()


def _options(server: RemoteServer) -> Any:
    """The options of the scorer there, or the Unavailable that the server raised."""
    try:
        return server.options()
    except Unavailable as error:
        return error


class _Work:
    """The requests of one batch, shared by threads.

    todo: numbers of the requests that wait. parts: their scores, in order. failed: the servers that
    are out of this work. errors: by number of the request, exceptions that no server can help.
    """

    def __init__(
        self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], size: int
    ) -> None:
        rows = [slice(i, i + size) for i in range(0, len(images), size)]
        self._batches = [(images[r], prompts[r], metadata[r]) for r in rows]
        self.todo = deque(range(len(rows)))
        self.parts = [Scores(np.zeros(0, np.float32))] * len(rows)
        self.failed: dict[RemoteServer, Unavailable] = {}
        self.errors: dict[int, Exception] = {}
        self._lock = threading.Lock()

    def take(self) -> tuple[int, tuple[np.ndarray, list[str], list[Metadata]]] | None:
        """The next request with its number; None when none is left, or the work has failed."""
        with self._lock:
            if self.errors or not self.todo:
                return None
            number = self.todo.popleft()
            return number, self._batches[number]

    def give_back(self, number: int, server: RemoteServer, error: Unavailable) -> None:
        """Another server must take the request."""
        with self._lock:
            self.todo.appendleft(number)
            self.failed[server] = error


def _join(parts: list[Scores]) -> Scores:
    """The parts one after the other; an extra that a part lacks is NaN there."""

    def join(columns: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *columns])

    extras = {
        name: join([part.extras.get(name, np.full_like(part.score, np.nan)) for part in parts])
        for name in dict.fromkeys(name for part in parts for name in part.extras)
    }
    reason = next((part.reason for part in parts if part.reason), "")
    return Scores(join([part.score for part in parts]), extras, reason)
