"""What becomes of an endpoint's refusals, outages and odd answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response

from reward_models import build
from reward_models.base import Unavailable
from reward_models.judge_endpoint import RefusedImage
from tests.reward_models.judged import NAN, Endpoint, judge, numbered, refusal
from tests.reward_models.processes import free_port


@pytest.mark.parametrize(
    "answer, kind",
    [
        (Response("<h1>Internal Server Error</h1>", status_code=500), Unavailable),
        (Response("web server is down", status_code=521), Unavailable),
        (JSONResponse({"error": {"message": "the image is odd"}}, status_code=500), RefusedImage),
        (JSONResponse({"error": "the image is odd"}, status_code=500), RefusedImage),
    ],
)
def test_a_proxys_5xx_is_tried_again_and_the_endpoints_own_is_not(
    endpoint: Endpoint, answer: Response, kind: type[Exception]
) -> None:
    endpoint.answer = lambda pixel, question: answer
    with pytest.raises(kind, match=f"answered {answer.status_code}") as raised:
        judge(endpoint, attempts=1)(*numbered(1))
    assert type(raised.value) is kind


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrency_limits_the_questions_asked_at_once(
    endpoint: Endpoint, concurrency: int
) -> None:
    endpoint.seconds = 0.05
    judge(endpoint, concurrency=concurrency)(*numbered(12))
    assert endpoint.most_running == concurrency
    assert len(endpoint.bodies) == 12


def test_the_key_comes_from_the_named_variable(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-1")
    judge(endpoint, api_key="SOME_KEY")(*numbered(1))
    judge(endpoint)(*numbered(1))
    sent = [headers.get("authorization") for headers in endpoint.headers]
    assert sent == ["Bearer sk-1", None]


def test_white_space_around_a_key_is_dropped(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, sent in ((" sk-1\n", "Bearer sk-1"), ("\n", None)):
        monkeypatch.setenv("JUDGE_API_KEY", key)
        judge(endpoint)(*numbered(1))
        assert endpoint.headers[-1].get("authorization") == sent


@pytest.mark.parametrize("key", ["geheim-ü", "secret\nline"])
def test_a_key_that_no_header_can_hold_names_its_variable_and_is_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", key)
    with pytest.raises(
        ValueError, match=r"^judge: the environment's JUDGE_API_KEY must be"
    ) as raised:
        build("judge", model="m")
    assert key[:6] not in str(raised.value)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("MY_KEY", "MY_KEY"),
        *((key, "the one that it names") for key in ("sk-1aB", "a0", "SK9Z8Q7")),
    ],
)
def test_a_variable_that_is_not_set_is_said_and_a_key_in_its_place_not_shown(
    name: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    for scorer in ("judge", "deqa", "pairwise"):
        with pytest.raises(ValueError) as raised:
            build(scorer, model="m", api_key=name)
        assert str(raised.value) == (
            f"{scorer}: api_key must be the NAME of an environment variable that holds the key; "
            f"{shown} is not set"
        )
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    for unset in ("JUDGE_API_KEY", ""):
        build("judge", model="m", api_key=unset)


def test_a_key_that_the_endpoint_repeats_is_not_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    endpoint.answer = lambda pixel, question: refusal("no key sk-secret here", status=401)
    with pytest.raises(TypeError, match=r"answered 401: .*no key \.\.\. here"):
        judge(endpoint)(*numbered(1))


@pytest.mark.parametrize("key", ["", "sk-1"])
def test_openais_variables_do_not_reach_the_endpoint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    for variable in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{variable}", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret\nX-Team: secret")
    monkeypatch.setenv("JUDGE_API_KEY", key)
    scorer = judge(endpoint)
    scorer.check()
    assert scorer(*numbered(1)).score.tolist() == [np.float32(0.6)]
    assert len(endpoint.headers) == 2
    for headers in endpoint.headers:
        assert "secret" not in str(headers)
        assert headers.get("authorization") == (f"Bearer {key}" if key else None)


def test_the_connections_are_reused_until_the_judge_is_closed(endpoint: Endpoint) -> None:
    scorer = judge(endpoint)
    client = scorer.endpoint._connections.client()
    scorer(*numbered(1))
    assert scorer.endpoint._connections.client() is client
    scorer.close()
    assert client.is_closed
    assert scorer(*numbered(1)).score.tolist() == [np.float32(0.6)], "it opens new ones"
    scorer.close()


def test_an_overloaded_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    answers: Iterator[str | Response] = iter(
        [Response(status_code=503), Response(status_code=429), "Final Score: 5"]
    )
    endpoint.answer = lambda pixel, question: next(answers)
    assert judge(endpoint, attempts=3)(*numbered(1)).score.tolist() == [1.0]
    endpoint.answer = lambda pixel, question: Response("too many", status_code=429)
    with pytest.raises(Unavailable, match=r"judge: .* answered 429: too many"):
        judge(endpoint, attempts=1)(*numbered(3))


def test_an_endpoint_out_of_reach_is_unavailable(endpoint: Endpoint) -> None:
    away = build("judge", url=f"http://127.0.0.1:{free_port()}/v1", model="eye-7b", attempts=2)
    with pytest.raises(Unavailable, match="no answer"):
        away(*numbered(3))
    with pytest.raises(Unavailable, match="no answer"):
        away.check()  # type: ignore[attr-defined]
    endpoint.seconds = 0.5
    with pytest.raises(Unavailable, match="ReadTimeout"):
        judge(endpoint, timeout=0.1, attempts=1)(*numbered(2))


@pytest.mark.parametrize(
    "answer",
    [
        Response("no key", status_code=401),
        JSONResponse({"error": "no model"}, 404),
        Response("<html>"),
        JSONResponse({}),
    ],
)
def test_wrong_settings_are_not_the_images_fault(endpoint: Endpoint, answer: Response) -> None:
    endpoint.answer = lambda pixel, question: answer
    with pytest.raises(TypeError, match=r"judge: http://127\.0\.0\.1"):
        judge(endpoint)(*numbered(2))


def test_check_asks_which_models_are_served(endpoint: Endpoint) -> None:
    judge(endpoint).check()
    with pytest.raises(ValueError, match="does not serve 'ear-7b'; it serves eye-7b"):
        build("judge", url=endpoint.url, model="ear-7b").check()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="answered 404"):
        build("judge", url=endpoint.url + "/elsewhere", model="eye-7b").check()  # type: ignore[attr-defined]


class Picky:
    """Refuses the fields `refused`, in the words that `words` makes of one."""

    def __init__(self, endpoint: Endpoint, *refused: str, words: str, param: bool = False) -> None:
        self.endpoint, self.refused, self.words, self.param = endpoint, refused, words, param

    def __call__(self, pixel: list[int], question: str) -> str | Response:
        for field in self.refused:
            if field in self.endpoint.bodies[-1]:
                return refusal(self.words.format(field), field if self.param else None)
        return "Final Score: 4"


UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model."


@pytest.mark.parametrize(
    "refused, sent",
    [
        (("max_tokens",), {"max_completion_tokens": 512, "temperature": 0}),
        (("temperature",), {"max_tokens": 512}),  # the endpoint's own temperature
        (("max_tokens", "temperature"), {"max_completion_tokens": 512}),
        (("max_tokens", "max_completion_tokens"), {"temperature": 0}),
    ],
)
@pytest.mark.parametrize("param", [True, False])
def test_a_refused_field_is_left_out_and_the_choice_remembered(
    endpoint: Endpoint, refused: tuple[str, ...], sent: dict, param: bool
) -> None:
    words = "Other than temperature, this is not supported." if param else UNSUPPORTED
    endpoint.answer = Picky(endpoint, *refused, words=words, param=param)
    scorer = judge(endpoint)
    assert scorer(*numbered(1)).score.tolist() == [np.float32(0.8)]
    assert len(endpoint.bodies) == 1 + len(refused)
    endpoint.bodies.clear()
    assert scorer(*numbered(3)).score.tolist() == [np.float32(0.8)] * 3
    fields = {"max_tokens", "max_completion_tokens", "temperature"}
    assert [{k: v for k, v in body.items() if k in fields} for body in endpoint.bodies] == [
        sent
    ] * 3


def test_a_choice_is_logged_once(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.answer = Picky(endpoint, "max_tokens", words=UNSUPPORTED)
    with caplog.at_level(logging.WARNING):
        scorer = judge(endpoint, concurrency=1)
        scorer(*numbered(3))
    assert [record.getMessage() for record in caplog.records] == [
        f"judge: {endpoint.url} refused a field, so it is asked with max_completion_tokens for the "
        "limit, temperature 0 from now on"
    ]


def test_a_refusal_of_this_question_alone_changes_nothing(endpoint: Endpoint) -> None:
    words = "max_tokens is too large: your prompt has 4000 of 4096 tokens of context"
    endpoint.answer = Picky(endpoint, "max_tokens", words=words, param=True)
    with pytest.raises(RefusedImage, match="too large"):
        judge(endpoint)(*numbered(1))
    assert len(endpoint.bodies) == 1
    scorer = judge(endpoint)
    filtered = refusal("filtered: a picture of the temperature")
    endpoint.answer = lambda pixel, question: filtered if pixel[0] == 1 else "Final Score: 5"
    np.testing.assert_array_equal(scorer(*numbered(2)).score, [1, NAN])
    endpoint.bodies.clear()
    scorer(*numbered(1))
    assert endpoint.bodies[0]["temperature"] == 0
