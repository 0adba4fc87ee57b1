"""Bodies that the reward server refuses."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from reward_models import wire
from tests.reward_models.asking import GOOD, HEADER, IMAGES, LIMIT, TEXTS, post, texts
from tests.reward_models.processes import TOKEN, ServerProcess


def tensors(**arrays: np.ndarray) -> bytes:
    return save(arrays, metadata=TEXTS)


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


def test_a_client_that_disconnects_in_mid_body_frees_its_place(server: ServerProcess) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request_head(5000) + GOOD[:50])
    time.sleep(0.2)
    assert (
        httpx.get(f"{server.url}/health", headers=HEADER, trust_env=False).json()["requests"] == 0
    )
    assert post(server, GOOD).status_code == 200
