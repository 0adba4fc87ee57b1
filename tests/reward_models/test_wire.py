"""The format between reward client and server."""

from __future__ import annotations

import numpy as np

from reward_models import Scores, wire
from tests.reward_models.processes import shapes_batch


def test_metadata_travel_as_they_are() -> None:
    images, prompts, metadata = shapes_batch(2)
    metadata[1]["note"] = {
        "quotes": "\"'\\",
        "list": [1, 2.5, None, True],
        "unicode": "\u00fc\U0001f600\ud800",
    }
    decoded = wire.decode(wire.encode(images, prompts, metadata), 10**6)
    np.testing.assert_array_equal(decoded[0], images)
    assert decoded[1:] == (prompts, metadata)


def test_the_reason_for_a_missing_score_travels() -> None:
    scores = Scores(np.array([1, np.nan], np.float32), reason="no mark")
    reply = wire.encode_scores(scores, 2)
    assert reply == {"score": [1.0, None], "extras": {}, "reason": "no mark"}
    assert wire.decode_scores(reply, 2).reason == "no mark"
    assert wire.decode_scores({"score": [1.0], "extras": {}}, 1).reason == "", "an older server"


def test_a_body_with_any_byte_changed_is_read_or_refused() -> None:
    random = np.random.default_rng(0)
    bodies = [
        wire.encode(np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"], [{}, {}], png=png)
        for png in (False, True)
    ]
    refused = 0
    for i in range(3000):
        body = bytearray(bodies[i % 2])
        for _ in range(random.integers(1, 4)):
            body[random.integers(len(body))] = random.integers(256)
        try:
            images, prompts, metadata = wire.decode(bytes(body), 10**6)
            assert images.dtype == np.uint8
            assert len(images) == len(prompts) == len(metadata) == 2
        except wire.BadBody:
            refused += 1
    assert 300 < refused < 2900
