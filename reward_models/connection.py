"""HTTP connections to scorers elsewhere, shared by the remote scorer and the judges."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
TRY_AGAIN = (408, 429, 502, 503, 504)  # statuses of a server that is too slow, busy or restarting


class Connections:
    """One httpx.Client per process, opened at the first use and shared by the threads.

    A forked child gets a client too: it must not write into its parent's sockets.

    timeout: seconds without a byte of an answer; options: further arguments of httpx.Client.
    """

    def __init__(self, timeout: float, **options: Any) -> None:
        import httpx

        self._options = options | {
            "timeout": httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            "limits": httpx.Limits(max_connections=None),
        }
        self._clients: dict[int, httpx.Client] = {}
        self._lock = threading.Lock()

    def client(self) -> httpx.Client:
        import httpx

        with self._lock:
            if os.getpid() not in self._clients:
                self._clients[os.getpid()] = httpx.Client(**self._options)
            return self._clients[os.getpid()]

    def close(self) -> None:
        """Close this process's connections; a later `client` opens new ones."""
        with self._lock:
            client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()


def check_remote(name: str, option: str, url: str, example: str, **numbers: float) -> None:
    """Raises ValueError, naming scorer and option, unless url is an address and all numbers > 0."""
    if not str(url).startswith(("http://", "https://")):
        raise ValueError(f"{name}: {option} = {url!r} must be an address, as in {example!r}")
    for number, value in numbers.items():
        if value <= 0:
            raise ValueError(f"{name}: {number} = {value} must be above 0")


def addresses(name: str, option: str, url: str | Sequence[str], example: str) -> tuple[str, ...]:
    """The addresses of a list, or of one text with commas, without slashes at their ends.

    Raises ValueError, naming scorer and option, for none and for one that is named twice.
    """
    several = [url] if isinstance(url, str) else list(url)
    found = [part.strip().rstrip("/") for each in several for part in str(each).split(",")]
    found = [part for part in found if part]
    if not found:
        raise ValueError(f"{name}: {option} = {url!r} names no address, such as {example!r}")
    for address in found:
        if found.count(address) > 1:
            raise ValueError(f"{name}: {option} = {url!r} names {address} twice")
    return tuple(found)
