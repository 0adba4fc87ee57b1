"""The reward server: its scores, its token, and scorers that fail."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from reward_models import build, wire
from tests.reward_models.asking import GOOD, HEADER, post
from tests.reward_models.processes import (
    BRIGHTNESS,
    RAISES,
    SHORT,
    SILENT,
    TOKEN,
    ServerProcess,
    shapes_batch,
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
