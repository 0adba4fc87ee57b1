"""The web application of the reward server: POST /v1/score/{name} and GET /health, as reward_models.wire describes.

Every refusal is {"error": a sentence, "kind": ...}; kind says whose turn it is: "body", "token", "name", "size" and
"programming" (what is sent, the settings, a scorer's code), "data" (this batch), "busy" (try again, after Retry-After).
"""

from __future__ import annotations

import asyncio
import hmac
import importlib.metadata
import logging
import platform
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_models import Scorer, wire
from reward_models.base import Scores, Unavailable

T = TypeVar("T")

READ_SECONDS = 120.0  # for one whole body
BODIES_HELD = 4  # full-sized bodies that may be in memory at once
PROGRAMMING = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)
PACKAGES = (
    "tp_grpo",
    "fastapi",
    "numpy",
    "onnxruntime",
    "open_clip_torch",
    "rapidfuzz",
    "rapidocr",
    "safetensors",
    "torch",
    "transformers",
)


class Refusal(Exception):
    """An answer that is not a score."""

    def __init__(self, status: int, kind: str, error: str) -> None:
        super().__init__(error)
        self.status, self.kind, self.error = status, kind, error

    def response(self) -> JSONResponse:
        headers = {"busy": {"Retry-After": "1"}, "token": {"WWW-Authenticate": "Bearer"}}.get(
            self.kind
        )
        return JSONResponse({"error": self.error, "kind": self.kind}, self.status, headers)


class Bearer:
    """Lets through what carries the token, before anything else is looked at."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                refusal = Refusal(
                    401, "token", "this reward server asks for a token, and this is not it"
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Intake:
    """Bounds what is read, waiting or in work: at most `requests` of them and BODIES_HELD full bodies of memory."""

    def __init__(self, requests: int, max_body: int) -> None:
        self.max_requests, self.max_body = requests, max_body
        self.requests = self.bytes = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self.requests >= self.max_requests:
            raise Refusal(503, "busy", f"{self.requests} requests are waiting already; try again")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Gives the function to call with the size of each piece before it is kept; raises Refusal 413 or 503."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if held + size > self.max_body:
                raise Refusal(
                    413,
                    "size",
                    f"the body is above the {self.max_body} bytes that this server takes",
                )
            if self.bytes + size > BODIES_HELD * self.max_body:
                raise Refusal(
                    503, "busy", f"{self.bytes} bytes of other requests are in memory; try again"
                )
            held += size
            self.bytes += size

        try:
            yield take
        finally:
            self.bytes -= held

    async def read(self, request: Request, take: Callable[[int], None]) -> bytes:
        """The whole body; the bounds hold while it comes in, with or without a Content-Length."""
        announced = int(request.headers.get("content-length", 0))
        if announced > self.max_body:
            sizes = f"{announced} bytes, above the {self.max_body} that this server takes"
            raise Refusal(
                413,
                "size",
                f"the body is {sizes}: send fewer images at a time, or raise --max-body",
            )
        pieces = bytearray()
        async for piece in request.stream():
            take(len(piece))
            pieces += piece
        return bytes(pieces)


class Desk:
    """One scorer with one thread, which is its lock: batches are scored one after the other, in the order they came."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name, self.scorer = name, scorer
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"scorer-{name}")

    async def score(self, request: Request, batch: tuple[Any, ...]) -> dict[str, Any]:
        async with self._turn:
            # Whoever gave up waiting will ask again: scoring for nobody would only lengthen the queue.
            if await request.is_disconnected():
                raise ClientDisconnect()
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._call, *batch
            )

    def _call(self, *batch: Any) -> dict[str, Any]:
        try:
            scores: Scores = self.scorer(*batch)
            return wire.encode_scores(scores, len(batch[0]))
        except Unavailable as error:
            raise Refusal(
                503, "busy", f"the scorer {self.name!r} is unavailable: {error}"
            ) from error
        except Exception as error:
            logging.getLogger(__name__).exception("the scorer %r failed", self.name)
            kind = "programming" if isinstance(error, PROGRAMMING) else "data"
            message = f"the scorer {self.name!r} failed with {type(error).__name__}: {error}"
            raise Refusal(500, kind, message) from error

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
    """The application. options: what /health tells of each scorer; token: "" asks for none; max_body in bytes;
    queue: requests that may be read, waiting or in work before the next is sent away with 503."""
    desks = {name: Desk(name, scorer) for name, scorer in scorers.items()}
    intake, versions = Intake(queue, max_body), _versions()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for desk in desks.values():
            desk.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    if token:
        app.add_middleware(Bearer, token=token)

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(ClientDisconnect)
    async def nobody_left(_: Request, __: ClientDisconnect) -> JSONResponse:
        return Refusal(400, "body", "the client went away").response()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        told = {name: {"options": (options or {}).get(name, {})} for name in desks}
        return {
            "scorers": told,
            "versions": versions,
            "max_body": max_body,
            "requests": intake.requests,
        }

    @app.post("/v1/score/{name}")
    async def score(name: str, request: Request) -> JSONResponse:
        if name not in desks:
            raise Refusal(
                404,
                "name",
                f"no scorer is called {name!r} here; this server has {', '.join(desks)}",
            )
        with intake.place(), intake.body() as take:
            body = await _in_time(intake.read(request, take))
            try:
                batch = await asyncio.to_thread(wire.decode, body, max_body)
            except wire.BadBody as error:
                raise Refusal(400, "body", str(error)) from error
            return JSONResponse(await desks[name].score(request, batch))

    return app


async def _in_time(reading: Any) -> bytes:
    try:
        body: bytes = await asyncio.wait_for(reading, READ_SECONDS)
        return body
    except asyncio.TimeoutError:
        raise Refusal(408, "busy", f"the body did not arrive within {READ_SECONDS:g} s") from None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
