"""How the reward server limits the memory of its requests, and their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from reward_models import build, service, wire
from tests.reward_models.asking import GOOD, texts


def request_of(body: bytes, pieces: int = 1) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        step = -(-len(body) // pieces)
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return SimpleNamespace(headers={}, stream=stream)


@pytest.mark.parametrize("png", [False, True])
def test_the_memory_of_all_requests_is_limited_in_every_encoding(png: bool) -> None:
    images = np.zeros((1, 100, 100, 3), np.uint8)
    body = wire.encode(images, ["a"], [{}], png=png)
    header = int.from_bytes(body[:8], "little")
    tensors = len(body) - header
    held = wire.TEXT_BYTES * header + tensors + ((3 + wire.DECODER_BYTES) * 100 * 100 if png else 0)
    largest = 100_000
    fit = (service.BODIES_HELD * largest - len(body)) // held
    intake = service.Intake(max_requests=100, max_body=largest)

    async def fill() -> None:
        async with AsyncExitStack() as stack:
            for n in range(1, fit + 1):
                batch = await stack.enter_async_context(intake.batch(request_of(body, 3)))
                assert batch[0].shape == images.shape
                assert intake.bytes == n * held, "the body itself is gone"
            with pytest.raises(service.Refusal, match="bytes of requests are in memory") as refused:
                await stack.enter_async_context(intake.batch(request_of(body)))
            assert (refused.value.status, refused.value.kind) == (503, "busy")
            assert intake.requests == fit
            assert intake.bytes == fit * held

    asyncio.run(fill())
    assert intake.bytes == 0
    assert intake.requests == 0


def test_texts_that_would_fill_the_memory_are_refused_before_they_are_read() -> None:
    """Each of these {} is three bytes here and 72 as an object."""
    body = texts(metadata="[" + "{}," * 30_000 + "{}]")
    intake = service.Intake(max_requests=1, max_body=2**19)

    async def ask() -> None:
        async with intake.batch(request_of(body)):
            raise AssertionError("it was read")

    words = "takes more than the 4194304 bytes of the server's memory: send fewer images"
    with pytest.raises(service.Refusal, match=words) as refused:
        asyncio.run(ask())
    assert (refused.value.status, refused.value.kind) == (413, "size")
    assert (intake.bytes, intake.requests) == (0, 0)


def test_a_body_that_grows_too_large_is_refused() -> None:
    intake = service.Intake(max_requests=1, max_body=10)

    async def ask() -> None:
        async with intake.batch(request_of(bytes(11), 3)):
            raise AssertionError("it was read")

    with pytest.raises(service.Refusal, match="exceeds the 10 bytes"):
        asyncio.run(ask())
    assert intake.bytes == 0


def test_a_body_that_arrives_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READ_SECONDS", 0.1)
    app = service.create_app({"shapes": build("shapes")})

    async def trickle() -> AsyncIterator[bytes]:
        for i in range(100):
            yield GOOD[i : i + 1]
            await asyncio.sleep(0.02)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.post("http://server/v1/score/shapes", content=trickle())

    answer = asyncio.run(ask())
    assert answer.status_code == 408
    assert "did not arrive within 0.1 s" in answer.json()["error"]
