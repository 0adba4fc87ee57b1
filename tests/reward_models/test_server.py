"""The reward server: good requests, bad ones, and many at once."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from reward_models import build, service, wire
from tests.reward_models.processes import (
    BRIGHTNESS,
    RAISES,
    SHORT,
    SILENT,
    SLOW,
    TOKEN,
    ServerProcess,
    shapes_batch,
)

HEADER = {"Authorization": f"Bearer {TOKEN}"}
IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
TEXTS = {"prompts": '["a", "b"]', "metadata": "[{}, {}]"}
GOOD = wire.encode(IMAGES, ["a", "b"], [{}, {}])
LIMIT = 2**20


def post(
    server: ServerProcess, body: object, name: str = BRIGHTNESS, headers: dict | None = None
) -> httpx.Response:
    headers = HEADER if headers is None else headers
    return httpx.post(
        f"{server.url}/v1/score/{name}", content=body, headers=headers, trust_env=False, timeout=30
    )


@pytest.mark.parametrize("png", [False, True])
def test_scores_are_those_of_the_same_process_bit_for_bit(server: ServerProcess, png: bool) -> None:
    batch = shapes_batch(20)
    reply = wire.decode_scores(post(server, wire.encode(*batch, png=png), "shapes").json(), 20)
    expected = build("shapes")(*batch)
    assert len(np.unique(expected.score)) > 5, "equal scores would prove nothing"
    assert reply.score.tobytes() == expected.score.tobytes()
    assert list(reply.extras) == list(expected.extras)
    for name, values in expected.extras.items():
        np.testing.assert_array_equal(reply.extras[name], values, strict=True)  # position is NaN


def test_health_names_scorers_and_versions(server: ServerProcess) -> None:
    health = httpx.get(f"{server.url}/health", headers=HEADER, trust_env=False).json()
    assert health["scorers"][RAISES] == {"options": {"calls": 0}}
    assert "shapes" in health["scorers"]
    assert health["versions"]["numpy"] == np.__version__
    assert "python" in health["versions"]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}]
)
@pytest.mark.parametrize(
    "path", ["/health", f"/v1/score/{BRIGHTNESS}", "/v1/score/unknown", "/elsewhere"]
)
def test_without_the_token_every_page_answers_401(
    server: ServerProcess, headers: dict, path: str
) -> None:
    method = "POST" if path.startswith("/v1") else "GET"
    answer = httpx.request(
        method, server.url + path, content=GOOD, headers=headers, trust_env=False
    )
    assert answer.status_code == 401
    assert answer.json()["kind"] == "token"
    assert "Bearer" in answer.headers.values()


def test_the_refusal_of_an_unknown_scorer_names_the_known_ones(server: ServerProcess) -> None:
    answer = post(server, GOOD, "geneva")
    assert answer.status_code == 404
    assert "'geneva'" in answer.json()["error"]
    assert "shapes" in answer.json()["error"]


def tensors(**arrays: np.ndarray) -> bytes:
    return save(arrays, metadata=TEXTS)


def texts(**changed: str) -> bytes:
    return save({"images": IMAGES}, metadata={**TEXTS, **changed})


PNG = np.frombuffer(wire.encode_png(IMAGES[0]), np.uint8)
GREY = np.frombuffer(wire.encode_png(IMAGES[0, :, :, 0]), np.uint8)
LARGE = np.frombuffer(wire.encode_png(np.zeros((600, 600, 3), np.uint8)), np.uint8)
# The second header declares an image of 600 x 600; readers take the last one.
TWO_HEADERS = np.concatenate([PNG[:33], LARGE[8:]])
BAD = {
    "empty": (b"", "not in safetensors format"),
    "garbage": (b"\x80\x04\x95 a pickle, or anything else" * 20, "not in safetensors format"),
    "half of it": (GOOD[: len(GOOD) // 2], "not in safetensors format"),
    "the last byte missing": (GOOD[:-1], "not in safetensors format"),
    "a byte too many": (GOOD + b"\0", "not in safetensors format"),
    "a header of a terabyte": (struct.pack("<Q", 2**40) + GOOD[8:], "not in safetensors format"),
    "float": (
        tensors(images=IMAGES.astype(np.float32)),
        r"uint8 and not empty, not \(2, 4, 4, 3\) float32",
    ),
    "signed": (tensors(images=IMAGES.astype(np.int8)), "int8"),
    "channels first": (tensors(images=IMAGES.transpose(0, 3, 1, 2).copy()), r"\(2, 3, 4, 4\)"),
    "one image alone": (tensors(images=IMAGES[0]), r"\(4, 4, 3\)"),
    "no images": (tensors(images=IMAGES[:0]), "not empty"),
    "other tensors": (tensors(pictures=IMAGES), r"holds \['pictures'\]"),
    "one image too many": (
        tensors(images=IMAGES[[0, 0, 0]]),
        "3 images came with 2 prompts and 2 metadata",
    ),
    "one prompt too many": (
        texts(prompts='["a", "b", "c"]'),
        "2 images came with 3 prompts and 2 metadata",
    ),
    "one metadata too few": (texts(metadata="[{}]"), "2 prompts and 1 metadata"),
    "no texts": (save({"images": IMAGES}), "no 'prompts'"),
    "broken JSON": (texts(prompts='["a", "b"'), "'prompts' in the safetensors header is not JSON"),
    "JSON without a bottom": (
        texts(metadata="[" * 100_000),
        "'metadata' in the safetensors header is not JSON",
    ),
    "numbers for prompts": (texts(prompts="[1, 2]"), "must be a list of strings"),
    "a string for metadata": (texts(metadata='"ab"'), "must be a list of objects"),
    "half a PNG": (
        tensors(png=PNG[: len(PNG) // 2], ends=np.array([len(PNG) // 2])),
        "image 0 is not a PNG file",
    ),
    "no PNG": (
        tensors(png=np.zeros(9, np.uint8), ends=np.array([4, 9])),
        "image 0 is not a PNG file",
    ),
    "a grey PNG": (
        tensors(png=GREY, ends=np.array([len(GREY)])),
        "image 0 must be an 8-bit RGB PNG; its mode is L of 8 bits",
    ),
    "a PNG with two headers": (
        tensors(png=TWO_HEADERS, ends=np.array([len(TWO_HEADERS)])),
        "image 0 is not a PNG file that can be read: it has two headers",
    ),
    "a PNG that unpacks to 1.03 MiB": (
        tensors(png=LARGE, ends=np.array([len(LARGE)])),
        "600 x 600 unpack to more",
    ),
    "ends that fall": (tensors(png=PNG, ends=np.array([len(PNG), 3])), "must rise"),
    "ends beyond the end": (tensors(png=PNG, ends=np.array([len(PNG) + 1])), "must rise"),
    "ends in floats": (tensors(png=PNG, ends=np.array([float(len(PNG))])), "int64"),
    "sizes that differ": (
        tensors(
            png=np.concatenate([PNG, np.frombuffer(wire.encode_png(IMAGES[0, :2]), np.uint8)]),
            ends=np.array([len(PNG), len(PNG) + len(wire.encode_png(IMAGES[0, :2]))]),
        ),
        "all must have one size",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_refused_with_a_sentence(server: ServerProcess, case: str) -> None:
    body, sentence = BAD[case]
    answer = post(server, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["kind"] == "body", answer.text
    assert re.search(sentence, answer.json()["error"]), answer.text


def test_a_body_too_large_is_refused_while_it_arrives_with_a_sentence(
    server: ServerProcess,
) -> None:
    answer = post(server, bytes(LIMIT + 1))
    assert answer.status_code == 413
    assert str(LIMIT) in answer.json()["error"]
    sent = 0

    def pieces() -> Iterator[bytes]:  # no Content-Length: only counting shows the size
        nonlocal sent
        for _ in range(64):
            sent += 2**16
            yield bytes(2**16)

    answer = post(server, pieces())
    assert answer.status_code == 413
    assert str(LIMIT) in answer.json()["error"]
    assert sent > LIMIT
    assert post(server, iter([GOOD[:50], GOOD[50:]])).status_code == 200, (
        "a body may arrive in pieces"
    )


def request_head(length: int) -> bytes:
    headers = (f"Authorization: Bearer {TOKEN}", f"Content-Length: {length}")
    lines = ("POST /v1/score/shapes HTTP/1.1", "Host: x", *headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_body_announced_too_large_is_refused_at_once(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_head(10**12))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_the_sentence_of_a_refusal_reaches_a_client_that_is_still_sending(
    server: ServerProcess,
) -> None:
    answer = post(server, bytes(30 * LIMIT), headers={})
    assert answer.status_code == 401
    assert "asks for a token" in answer.json()["error"]


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


def test_a_client_that_disconnects_in_mid_body_frees_its_place(server: ServerProcess) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request_head(5000) + GOOD[:50])
    time.sleep(0.2)
    assert (
        httpx.get(f"{server.url}/health", headers=HEADER, trust_env=False).json()["requests"] == 0
    )
    assert post(server, GOOD).status_code == 200


@pytest.mark.parametrize(
    "name, status, kind, words",
    [
        (RAISES, 500, "data", "RuntimeError: the engine is out of fuel"),
        ("shapes", 500, "data", "ValueError: shapes: the metadata of 'a' names no objects"),
        (
            SHORT,
            500,
            "programming",
            r"NotScores: the scorer returned the score of shape (1,) for 2 images",
        ),
        (SILENT, 503, "busy", "is unavailable: the far end is silent"),
    ],
)
def test_a_scorer_that_fails_is_quoted(
    server: ServerProcess, name: str, status: int, kind: str, words: str
) -> None:
    answer = post(server, GOOD, name)
    assert answer.status_code == status
    assert answer.json()["kind"] == kind
    assert words in answer.json()["error"]
    assert name in answer.json()["error"]


def test_200_requests_at_once_lose_nothing_and_mix_nothing_up(server: ServerProcess) -> None:
    def body(i: int) -> bytes:
        images = np.full((3, 8, 8, 3), i, np.uint8)
        images[1] += 1
        images[2] += 2
        return wire.encode(images, ["a", "b", "c"], [{}] * 3)

    async def ask_all() -> list[list[float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            headers=HEADER, limits=limits, timeout=60, trust_env=False
        ) as client:
            url = f"{server.url}/v1/score/{BRIGHTNESS}"
            answers = await asyncio.gather(*(client.post(url, content=body(i)) for i in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json()["score"] for answer in answers]

    expected = [[float(np.float32(k / 255)) for k in (i, i + 1, i + 2)] for i in range(200)]
    np.testing.assert_allclose(asyncio.run(ask_all()), expected, rtol=1e-6)


def test_health_answers_while_a_slow_scorer_works(server: ServerProcess) -> None:
    worker = threading.Thread(
        target=lambda: [post(server, GOOD, SLOW) for _ in range(3)]
    )  # 0.3 s each
    worker.start()
    waits = []
    while worker.is_alive():
        start = time.monotonic()
        assert httpx.get(f"{server.url}/health", headers=HEADER, trust_env=False).status_code == 200
        waits.append(time.monotonic() - start)
    worker.join()
    # If it waited for the scorer, it would answer three times, 0.3 s apart.
    assert len(waits) > 6
    assert np.median(waits) < 0.2


def test_batches_of_clients_that_gave_up_are_not_scored(server: ServerProcess) -> None:
    def give_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/score/{SLOW}",
                content=GOOD,
                headers=HEADER,
                trust_env=False,
                timeout=0.2,
            )

    threads = [threading.Thread(target=give_up) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start = time.monotonic()
    assert post(server, GOOD, SLOW).status_code == 200
    assert time.monotonic() - start < 2, "twelve abandoned batches of 0.3 s were scored first"


def test_work_beyond_the_grace_of_a_termination_is_answered_503() -> None:
    server = ServerProcess({SLOW: {}}, "--grace", "1")
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
        for _ in range(10)  # 3 s of work
    ]
    for thread in threads:
        thread.start()
    while httpx.get(f"{server.url}/health", trust_env=False).json()["requests"] < 9:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    server.process.wait(timeout=20)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) == 10
    assert 3 <= len(refused) < 10
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["kind"] == "busy"
        assert "is stopping before this work is done" in answer.json()["error"]


def test_a_full_queue_answers_503_and_termination_finishes_running_batches(tmp_path: Path) -> None:
    server = ServerProcess({SLOW: {}}, "--queue", "2", log=tmp_path / "log")
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, refused = (
        sorted((a for a in answers if a.status_code == c), key=id) for c in (200, 503)
    )
    assert len(taken) >= 2
    assert len(taken) + len(refused) == 12
    assert len(refused) >= 1
    assert all(a.headers["Retry-After"] == "1" and a.json()["kind"] == "busy" for a in refused)
    assert post(server, GOOD, SLOW, {}).status_code == 200

    last = threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
    last.start()
    while httpx.get(f"{server.url}/health", trust_env=False).json()["requests"] == 0:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    last.join()
    assert answers[-1].status_code == 200, "the running batch was finished"
    server.process.wait(timeout=20)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Finished server process" in log
