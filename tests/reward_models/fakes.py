"""A reward server on a thread of the tests, whose answers and outages a test decides."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from reward_models import wire
from reward_models.base import Scores

BUSY = (503, {"error": "256 requests are waiting already; try again", "kind": "busy"})
PROXY = (502, None)
DATA = (500, {"error": "odd image", "kind": "data"})


class FakeServer:
    """Scores images by their first pixel's red channel.

    refusal: a status and a reply for every request to score, or None for scores. seconds: that an
    answer takes. options: of its one scorer, "red".
    """

    def __init__(self, **options: Any) -> None:
        self.refusal: tuple[int, Any] | None = None
        self.seconds, self.options, self.scorer = 0.0, options, "red"
        self.scored: list[list[int]] = []  # the images of each request, in the order of arrival
        self.healths = 0  # requests for /health
        self.running = self.most_running = 0
        self._count = threading.Lock()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, again on the same port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()

    def _score(self, body: bytes) -> tuple[int, Any]:
        images = wire.decode(body, 2**30)[0]
        with self._count:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.scored.append(images[:, 0, 0, 0].tolist())
        time.sleep(self.seconds)
        with self._count:
            self.running -= 1
        if self.refusal is not None:
            return self.refusal
        red = images[:, 0, 0, 0].astype(np.float32)
        return 200, wire.encode_scores(Scores(red, {"double": 2 * red}), len(red))

    def _handler(fake) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):  # HTTP/1.0: each request has its own connection
            def do_POST(self) -> None:
                self._reply(*fake._score(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                fake.healths += 1
                self._reply(200, {"scorers": {fake.scorer: {"options": fake.options}}})

            def _reply(self, status: int, reply: Any) -> None:
                body = b"<html>" if reply is None else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
