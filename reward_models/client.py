"""A scorer of a reward server (`python -m reward_models.server`), called like a local one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from reward_models import wire
from reward_models.base import Metadata, Scores, Unavailable
from reward_models.connection import TRY_AGAIN, Connections, check_remote


class Refused(TypeError):
    """The code or settings are wrong, here or there: another try would fail too."""


class RemoteScorer:
    """The scorer `name` of the reward server at `url`. Threads may share one.

    The server is first contacted by `check` or the first batch.

    token: the server's token; by default the environment variable REWARD_TOKEN.
    timeout: seconds without a byte of an answer; includes the time queued behind other batches.
    batch_size: images per request.
    png: send PNG files, which takes time here and saves it on a slow network.

    Raises ValueError for a url that is not an address.
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
        example = "http://127.0.0.1:8090"
        check_remote(name, "remote", url, example, timeout=timeout, batch_size=batch_size)
        self.url, self.name, self.png, self.batch_size = url.rstrip("/"), name, png, batch_size
        token = (token or os.environ.get("REWARD_TOKEN", "")).strip()
        try:
            self._connections = Connections(
                timeout,
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                # A cluster's http_proxy leads to the internet, and no reward server is there.
                trust_env=False,
            )
        except ImportError as error:
            needs = "a remote scorer needs httpx: pip install 'tp_grpo[server]'"
            raise ValueError(f"{name}: {needs}") from error

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """Raises Unavailable when the server does not answer or is overloaded, RuntimeError with
        the server's message when the scorer failed on these images, and Refused when the code or
        the settings are wrong.
        """
        parts = []
        for i in range(0, len(images), self.batch_size):
            rows = slice(i, i + self.batch_size)
            body = wire.encode(images[rows], prompts[rows], metadata[rows], png=self.png)
            reply = self._request("POST", f"/v1/score/{quote(self.name, safe='')}", body)
            try:
                parts.append(wire.decode_scores(reply, len(images[rows])))
            except wire.BadBody as error:
                raise Refused(f"{self.url}: {error}") from error
        return _join(parts)

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Query /health before a run; prompts and metadata are only checked with the first batch.

        Raises Unavailable when nothing answers, and ValueError for a wrong token, a scorer that is
        not served there, or a server of another kind.
        """
        try:
            health = self._request("GET", "/health")
        except Refused as error:
            raise ValueError(str(error)) from error
        if not isinstance(health, dict) or not isinstance(health.get("scorers"), dict):
            raise ValueError(f"the server at {self.url} is not a reward server")
        if self.name not in health["scorers"]:
            known = ", ".join(health["scorers"])
            raise ValueError(
                f"the reward server at {self.url} has no scorer {self.name!r}; it has {known}"
            )

    def close(self) -> None:
        """Close this process's connections."""
        self._connections.close()

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        import httpx

        headers = {"Content-Type": "application/octet-stream"} if body else {}
        try:
            response = self._connections.client().request(
                method, path, content=body, headers=headers
            )
        except httpx.TransportError as error:
            where = f"{self.url} ({type(error).__name__}: {error})"
            command = f"python -m reward_models.server --scorers '{{\"{self.name}\": {{}}}}'"
            raise Unavailable(
                f"no answer from the reward server at {where}; is it running? {command}"
            ) from error
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if response.status_code != 200:
            raise _error(self.url, response.status_code, reply)
        return reply


def _error(url: str, status: int, reply: Any) -> Exception:
    """The exception for an answer that is no score.

    A 5xx without the `kind` of a reward server comes from a proxy, or from a server that is
    stopping: it says nothing about the code or the settings, so the request may be tried again.
    """
    refusal = reply if isinstance(reply, dict) and "kind" in reply else {}
    message = f"{url} answered {status}: {refusal.get('error', 'not the reply of a reward server')}"
    kind = refusal.get("kind")
    if status in TRY_AGAIN or kind == "busy" or (status >= 500 and kind is None):
        return Unavailable(message)
    if kind in ("data", "size") or status == 413:
        return RuntimeError(message)
    return Refused(message)


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
