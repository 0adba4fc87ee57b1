"""A scorer that lives in a reward server (`python -m reward_models.server`), called like any other."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from reward_models import wire
from reward_models.base import Metadata, Scores, Unavailable

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
TRY_AGAIN = (408, 429, 502, 503, 504)


class Refused(TypeError):
    """Code or settings are wrong, here or on the server: a smaller batch or another try would fare no better."""


class RemoteScorer:
    """The scorer `name` of the reward server at `url`.

    token: the server's; by default the environment's REWARD_TOKEN. timeout: seconds without a byte of an answer; it
    includes the wait behind other batches. batch_size: images a request. png: send PNG files, which takes time here and
    saves it on a slow network. Nothing is asked of the server before `check` or the first batch. Threads may share one.
    Raises ValueError for a url that is none.
    """

    def __init__(
        self,
        url: str,
        name: str,
        token: str = "",
        timeout: float = 300.0,
        png: bool = False,
        batch_size: int = 32,
    ) -> None:
        if not str(url).startswith(("http://", "https://")):
            raise ValueError(
                f"{name}: remote = {url!r} must be the server's address, as in 'http://127.0.0.1:8090'"
            )
        if timeout <= 0 or batch_size < 1:
            raise ValueError(
                f"{name}: timeout = {timeout} and batch_size = {batch_size} must be above 0"
            )
        try:
            import httpx
        except ImportError as error:
            raise ValueError(
                f"{name}: a remote scorer needs httpx: pip install 'tp_grpo[server]'"
            ) from error
        self.url, self.name, self.png, self.batch_size = url.rstrip("/"), name, png, batch_size
        self._token = (token or os.environ.get("REWARD_TOKEN", "")).strip()
        self._timeout = httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None)
        self._clients: dict[int, httpx.Client] = {}
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """Raises Unavailable when the server cannot be reached or is overfull, RuntimeError with the server's words
        when the scorer failed on these images, and Refused when the code or the settings are at fault.
        """
        parts = []
        for i in range(0, len(images), self.batch_size):
            rows = slice(i, i + self.batch_size)
            body = wire.encode(images[rows], prompts[rows], metadata[rows], png=self.png)
            reply = self._ask("POST", f"/v1/score/{quote(self.name, safe='')}", body)
            try:
                parts.append(wire.decode_scores(reply, len(images[rows])))
            except wire.BadBody as error:
                raise Refused(f"{self.url}: {error}") from error
        return _join(parts)

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Ask /health before a run: raises Unavailable when nobody answers, ValueError for a wrong token, a scorer not
        served there, or something else than a reward server. Prompts and metadata are judged by the first batch.
        """
        try:
            health = self._ask("GET", "/health")
        except Refused as error:
            raise ValueError(str(error)) from error
        if not isinstance(health, dict) or not isinstance(health.get("scorers"), dict):
            raise ValueError(f"what answers at {self.url} is no reward server")
        if self.name not in health["scorers"]:
            known = ", ".join(health["scorers"])
            raise ValueError(
                f"the reward server at {self.url} has no scorer {self.name!r}; it has {known}"
            )

    def close(self) -> None:
        """Close this process's connections."""
        with self._lock:
            client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> httpx.Client:
        """One pool of connections a process: a forked child must not write into its parent's sockets."""
        import httpx

        with self._lock:
            if os.getpid() not in self._clients:
                self._clients[os.getpid()] = httpx.Client(
                    base_url=self.url,
                    headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
                    timeout=self._timeout,
                    limits=httpx.Limits(max_connections=None),
                    # A cluster's http_proxy is for the world outside, where no reward server is; .netrc has no say.
                    trust_env=False,
                )
            return self._clients[os.getpid()]

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        import httpx

        headers = {"Content-Type": "application/octet-stream"} if body else {}
        try:
            response = self._client().request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise Unavailable(
                f"no answer from the reward server at {self.url} ({type(error).__name__}: {error}); is it running? "
                f"python -m reward_models.server --scorers '{{\"{self.name}\": {{}}}}'"
            ) from error
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if response.status_code != 200:
            raise _error(self.url, response.status_code, reply)
        return reply


def _error(url: str, status: int, reply: Any) -> Exception:
    told = reply if isinstance(reply, dict) else {}
    message = f"{url} answered {status}: {told.get('error', 'nothing that a reward server says')}"
    if status in TRY_AGAIN:
        return Unavailable(message)
    if told.get("kind") in ("data", "size"):
        return RuntimeError(message)
    return Refused(message)


def _join(parts: list[Scores]) -> Scores:
    """One Scores of several; an extra that a part does not have is NaN there."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.extras)

    def column(part: Scores, name: str) -> np.ndarray:
        return part.extras.get(name, np.full(len(part.score), np.nan, np.float32))

    empty = [np.zeros(0, np.float32)]
    extras = {name: np.concatenate([column(part, name) for part in parts]) for name in names}
    return Scores(np.concatenate(empty + [part.score for part in parts]), extras)
