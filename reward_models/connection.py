"""HTTP connections to scorers elsewhere, shared by the remote scorer and the judges."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
VARIABLES = "ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE"
TRY_AGAIN = (408, 429, 502, 503, 504)  # statuses of a server that is too slow, busy or restarting


class Connections:
    """One httpx.Client per process, opened at the first use and shared by the threads.

    A forked child gets a client too: it must not write into its parent's sockets.

    name: of the scorer, for messages. timeout: seconds without a byte of an answer; options:
    further arguments of httpx.Client.
    """

    def __init__(self, name: str, timeout: float, **options: Any) -> None:
        import httpx

        self._name = name
        self._options = options | {
            "timeout": httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            "limits": httpx.Limits(max_connections=None),
        }
        self._clients: dict[int, httpx.Client] = {}
        self._lock = threading.Lock()

    def client(self) -> httpx.Client:
        """Raises ValueError if httpx cannot use what the environment says of connections."""
        import httpx

        with self._lock:
            if os.getpid() not in self._clients:
                try:
                    self._clients[os.getpid()] = httpx.Client(**self._options)
                except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
                    raise ValueError(
                        f"{self._name}: no connection can be made, "
                        f"{type(error).__name__}: {error}; look at the environment's {VARIABLES}"
                    ) from error
            return self._clients[os.getpid()]

    def close(self) -> None:
        """Close this process's connections; a later `client` opens new ones."""
        with self._lock:
            client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()


def check_remote(name: str, option: str, url: str, example: str, **numbers: float) -> None:
    """Raises ValueError, naming scorer and option, unless url is an address and all numbers > 0."""
    if reason := _mistake(url):
        raise ValueError(
            f"{name}: {option} = {url!r} must be an address, as in {example!r}: {reason}"
        )
    for number, value in numbers.items():
        if value <= 0:
            raise ValueError(f"{name}: {number} = {value} must be above 0")


def _mistake(url: Any) -> str:
    """Why url is no address; "" for one."""
    if not isinstance(url, str):
        return f"it is of type {type(url).__name__}"
    if not url.startswith(("http://", "https://")):
        return "it must begin with http:// or https://"
    if not url.isprintable() or " " in url or ";" in url:
        return "it has a space, a ';' or a line break; several are a list, or one text with commas"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    return "" if host else "it names no host"


def addresses(name: str, option: str, url: str | Sequence[str], example: str) -> tuple[str, ...]:
    """The addresses of a list, or of one text with commas, without slashes at their ends.

    Raises ValueError, naming scorer and option, for none and for one that is named twice.
    """
    several = list(url) if isinstance(url, list | tuple) else [url]
    found = [part.strip().rstrip("/") for each in several for part in str(each).split(",")]
    found = [part for part in found if part]
    if not found:
        raise ValueError(f"{name}: {option} = {url!r} names no address, such as {example!r}")
    for address in found:
        if found.count(address) > 1:
            raise ValueError(f"{name}: {option} = {url!r} names {address} twice")
    return tuple(found)
