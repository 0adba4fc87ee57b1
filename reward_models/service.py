"""The reward server's web application: POST /v1/score/{name} and GET /health.

`reward_models.wire` describes bodies and replies. A refusal is {"error": a sentence, "kind": ...},
where kind names what is at fault: "body", "token", "name", "size" or "programming" (the request,
the settings, a scorer's code), "data" (this batch), "busy" (try again, after Retry-After).
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import importlib.metadata
import logging
import platform
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_models import Scorer, wire
from reward_models.base import NotScores, Unavailable

READ_SECONDS = 120.0  # for one whole body
BODIES_HELD = 8  # times the largest body: the memory of all requests, bodies and images
SMALLER = "send fewer images at a time, or raise --max-body"
PROGRAMMING = (TypeError, AttributeError, NameError, ImportError, NotImplementedError, NotScores)
LIBRARIES = "fastapi numpy onnxruntime open_clip_torch rapidfuzz rapidocr safetensors torch"


class Refusal(Exception):
    """An answer that is not a score."""

    def __init__(self, status: int, kind: str, error: str) -> None:
        super().__init__(error)
        self.status, self.kind, self.error = status, kind, error

    def response(self) -> JSONResponse:
        extra = {"busy": {"Retry-After": "1"}, "token": {"WWW-Authenticate": "Bearer"}}
        content = {"error": self.error, "kind": self.kind}
        return JSONResponse(content, self.status, extra.get(self.kind))


class Bearer:
    """Refuses every request without the token before anything else of it is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] != "lifespan":
            authorization = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(authorization, self.expected):
                app = Refusal(401, "token", "this reward server asks for a token").response()
        await app(scope, receive, send)


class Finished:
    """Answers 503 for work that the end of the server cancels; its client asks again later."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def watched(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if answering or scope["type"] != "http":
                raise
            sentence = "the reward server is stopping before this work is done; try again"
            await Refusal(503, "busy", sentence).response()(scope, receive, send)


class Intake:
    """Limits the requests being read, waiting or scored, and their memory.

    bytes: of the bodies, of the images that they unpack to and of their texts. They are counted
    before they are allocated, and are at most BODIES_HELD times the largest body.
    """

    def __init__(self, max_requests: int, max_body: int) -> None:
        self.max_requests, self.max_body = max_requests, max_body
        self.requests = self.bytes = 0
        self._count = threading.Lock()  # bodies are decoded on threads

    def take(self, size: int, held: Counter[str]) -> None:
        """Count `size` bytes more. Raises Refusal if they exceed the limit."""
        limit = BODIES_HELD * self.max_body
        with self._count:
            if held.total() + size > limit:
                sentence = f"this request takes more than the {limit} bytes of the server's memory"
                raise Refusal(413, "size", f"{sentence}: {SMALLER}")
            if self.bytes + size > limit:
                sentence = f"{self.bytes} bytes of requests are in memory already; try again"
                raise Refusal(503, "busy", sentence)
            self.bytes += size
            held["bytes"] += size

    def free(self, size: int, held: Counter[str]) -> None:
        with self._count:
            self.bytes -= size
            held["bytes"] -= size

    @asynccontextmanager
    async def batch(self, request: Request) -> AsyncIterator[tuple[Any, ...]]:
        """The request's batch; until the exit the request counts as present. Raises Refusal."""
        if self.requests >= self.max_requests:
            raise Refusal(503, "busy", f"{self.requests} requests are waiting already; try again")
        held: Counter[str] = Counter()
        self.requests += 1
        try:
            try:
                body = await asyncio.wait_for(self._read(request, held), READ_SECONDS)
            except asyncio.TimeoutError:
                sentence = f"the body did not arrive within {READ_SECONDS:g} s"
                raise Refusal(408, "busy", sentence) from None
            size, reserve = len(body), functools.partial(self.take, held=held)
            try:
                batch = await asyncio.to_thread(wire.decode, body, self.max_body, reserve)
            except wire.BadBody as error:
                raise Refusal(400, "body", str(error)) from error
            del body
            self.free(size, held)
            yield batch
        finally:
            self.requests -= 1
            self.free(held.total(), held)

    async def _read(self, request: Request, held: Counter[str]) -> bytes:
        announced = int(request.headers.get("content-length", 0))
        if announced > self.max_body:
            sizes = f"{announced} bytes, above the {self.max_body} that this server takes"
            raise Refusal(413, "size", f"the body is {sizes}: {SMALLER}")
        body = bytearray()
        async for piece in request.stream():  # a body without a Content-Length is counted
            if len(body) + len(piece) > self.max_body:
                sentence = f"the body exceeds the {self.max_body} bytes that this server takes"
                raise Refusal(413, "size", sentence)
            self.take(len(piece), held)
            body += piece
        return bytes(body)


class Desk:
    """One scorer on one thread: it scores batch after batch, in the order in which they arrive."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name, self.scorer = name, scorer
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"scorer-{name}")

    async def score(self, request: Request, batch: tuple[Any, ...]) -> dict[str, Any]:
        async with self._turn:
            # A client that gave up will ask again; its old batch would only lengthen the queue.
            if await request.is_disconnected():
                raise ClientDisconnect()
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, batch)

    def _call(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        try:
            return wire.encode_scores(self.scorer(*batch), len(batch[0]))
        except Unavailable as error:
            sentence = f"the scorer {self.name!r} is unavailable: {error}"
            raise Refusal(503, "busy", sentence) from error
        except Exception as error:
            logging.getLogger(__name__).exception("the scorer %r failed", self.name)
            kind = "programming" if isinstance(error, PROGRAMMING) else "data"
            sentence = f"the scorer {self.name!r} failed with {type(error).__name__}: {error}"
            raise Refusal(500, kind, sentence) from error

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        getattr(self.scorer, "close", lambda: None)()


def create_app(
    scorers: Mapping[str, Scorer],
    options: Mapping[str, Any] | None = None,
    *,
    token: str = "",
    max_body: int = 256 * wire.MEBIBYTE,
    queue: int = 256,
) -> FastAPI:
    """The application.

    options: of each scorer, for /health. token: "" asks for none. max_body: in bytes.
    queue: requests that may be read, waiting or scored at once; more get a 503.
    """
    desks = {name: Desk(name, scorer) for name, scorer in scorers.items()}
    intake, versions = Intake(queue, max_body), _versions()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for desk in desks.values():
            desk.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Finished)
    if token:
        app.add_middleware(Bearer, token=token)

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: ClientDisconnect) -> JSONResponse:
        return Refusal(400, "body", "the client disconnected").response()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        served = {name: {"options": (options or {}).get(name, {})} for name in desks}
        state = {"max_body": max_body, "requests": intake.requests}
        return {"scorers": served, "versions": versions, **state}

    @app.post("/v1/score/{name}")
    async def score(name: str, request: Request) -> JSONResponse:
        if name not in desks:
            known = f"this server has {', '.join(desks)}"
            raise Refusal(404, "name", f"no scorer is called {name!r} here; {known}")
        async with intake.batch(request) as batch:
            return JSONResponse(await desks[name].score(request, batch))

    return app


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("tp_grpo", "transformers", *LIBRARIES.split()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
