"""One reward server, as its client sees it: requests, refusals, and whether it answers."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import quote

import numpy as np

from reward_models import wire
from reward_models.base import Metadata, Scores, Unavailable
from reward_models.connection import CONNECT_SECONDS, TRY_AGAIN, Connections

FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds until a server that did not answer is asked again
_LOG = logging.getLogger(__name__)


class Refused(TypeError):
    """The code or settings are wrong, here or there: another try would fail too."""


class Busy(Unavailable):
    """The server answers, but has no room for this request; try again after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class RemoteServer:
    """The scorer `name` of the reward server at `url`. Threads may share one.

    A server that did not answer is left alone: it `awake`s again when it answers a probe. `probe`
    sends one when it is time, first after a second, at last every half minute.

    token: "" sends none. timeout: seconds without a byte of an answer. png: send PNG files.

    Raises ImportError without httpx.
    """

    def __init__(self, url: str, name: str, token: str, timeout: float, png: bool) -> None:
        self.url, self.name, self.png = url, name, png
        self._connections = Connections(
            name,
            timeout,
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            # A cluster's http_proxy leads to the internet, and no reward server is there.
            trust_env=False,
        )
        self._lock = threading.Lock()
        self._failures, self._due = 0, 0.0  # in a row; when the next probe may be sent

    @property
    def awake(self) -> bool:
        """Whether it answered when it was last asked; a new one counts as awake."""
        return not self._failures

    def score(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """The scores of images (B, H, W, 3) uint8.

        Raises Unavailable when it does not answer, Busy, RuntimeError with its message when the
        scorer failed on these images, and Refused when the code or the settings are wrong.
        """
        body = wire.encode(images, prompts, metadata, png=self.png)
        reply = self._request("POST", f"/v1/score/{quote(self.name, safe='')}", body)
        try:
            return wire.decode_scores(reply, len(images))
        except wire.BadBody as error:
            raise Refused(f"{self.url}: {error}") from error

    def options(self) -> Any:
        """The options with which the scorer was built there, from /health.

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
        served = health["scorers"][self.name]
        return served.get("options") if isinstance(served, dict) else None

    def rest(self, error: Unavailable) -> bool:
        """Leave it alone for a while, because of `error`. Returns whether it was awake."""
        with self._lock:
            was_awake = self.awake
            self._fail(error.seconds if isinstance(error, Busy) else LONGEST_REST)
        return was_awake

    def wake(self) -> None:
        """It has answered."""
        with self._lock:
            if self._failures:
                _LOG.info("the reward server at %s answers again", self.url)
            self._failures = 0

    def probe(self) -> None:
        """If it rests and the time has come, ask on a thread whether it answers again."""
        with self._lock:
            if not self._failures or time.monotonic() < self._due:
                return
            self._fail(LONGEST_REST)
        threading.Thread(target=self._probe, name=f"probe-{self.url}", daemon=True).start()

    def _fail(self, longest: float) -> None:
        """Count a failure; the next probe is due after a pause that doubles with each."""
        self._failures += 1
        doubled = FIRST_REST * 2 ** min(self._failures - 1, 10)
        self._due = time.monotonic() + min(doubled, longest, LONGEST_REST)

    def _probe(self) -> None:
        try:
            self._request("GET", "/health", timeout=CONNECT_SECONDS)
        except Unavailable:
            return
        except Refused:  # it answers; the next batch will say what is wrong
            pass
        self.wake()

    def close(self) -> None:
        """Close this process's connections."""
        self._connections.close()

    def _request(self, method: str, path: str, body: bytes | None = None, **options: Any) -> Any:
        import httpx

        headers = {"Content-Type": "application/octet-stream"} if body else {}
        try:
            response = self._connections.client().request(
                method, path, content=body, headers=headers, **options
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
            raise refusal(
                self.url, response.status_code, reply, response.headers.get("Retry-After", "")
            )
        return reply


def refusal(url: str, status: int, reply: Any, retry_after: str = "") -> Exception:
    """The exception for an answer that is no score. retry_after: the header, in seconds.

    A 5xx without the `kind` of a reward server comes from a proxy, or from a server that is
    stopping: it says nothing about the code or the settings, so the request may be tried again.
    """
    refused = reply if isinstance(reply, dict) and "kind" in reply else {}
    message = f"{url} answered {status}: {refused.get('error', 'not the reply of a reward server')}"
    kind = refused.get("kind")
    if kind == "busy":
        return Busy(message, float(retry_after) if retry_after.isdecimal() else FIRST_REST)
    if status in TRY_AGAIN or (status >= 500 and kind is None):
        return Unavailable(message)
    if kind in ("data", "size") or status == 413:
        return RuntimeError(message)
    return Refused(message)
