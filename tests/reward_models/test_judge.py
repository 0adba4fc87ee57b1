"""The vision-language judges, against a local endpoint that speaks OpenAI's format."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from reward_models import build
from reward_models.base import Unavailable
from reward_models.judge import Judge, RefusedImage, parse_mark
from tests.reward_models.processes import free_port

NAN = float("nan")


class Endpoint:
    """Answers with `answer(pixel, question)`, a text or a whole response.

    pixel: the RGB values at the top left corner of the image.
    """

    def __init__(self) -> None:
        self.answer: Callable[[list[int], str], str | Response] = lambda pixel, question: (
            "Final Score: 3"
        )
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.seconds, self.running, self.most_running = 0.0, 0, 0
        app = FastAPI()
        app.post("/v1/chat/completions")(self.complete)
        app.get("/v1/models")(self.models)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        end = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < end
            time.sleep(0.01)

    async def models(self, request: Request) -> dict:
        self.headers.append(dict(request.headers))
        return {"object": "list", "data": [{"id": "eye-7b", "object": "model"}]}

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        picture, question = body["messages"][0]["content"]
        kind, _, data = picture["image_url"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        answer = self.answer(np.array(image)[0, 0].tolist(), question["text"])
        if isinstance(answer, Response):
            return answer
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": answer}}]})


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.should_exit = True
    endpoint.thread.join()


@pytest.fixture
def endpoint(running: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    running.answer, running.seconds = lambda pixel, question: "Final Score: 3", 0.0
    running.bodies, running.headers, running.most_running = [], [], 0
    return running


def judge(endpoint: Endpoint, name: str = "deqa", **options: object) -> Judge:
    scorer = build(name, url=endpoint.url, model="eye-7b", **{"timeout": 10, **options})
    assert isinstance(scorer, Judge)
    return scorer


def numbered(n: int) -> tuple[np.ndarray, list[str], list[dict]]:
    """n plain images, the red channel of each its number, with prompts and metadata."""
    images = np.zeros((n, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]
    return images, [f"prompt number {i}" for i in range(n)], [{}] * n


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Sharp and clean.\nFinal Score: 4", 0.8),
        ("Final Score: 1\nOn second thought\nFinal Score: 5", 1.0),
        ("**Final Score:** 4.5/5", 0.9),
        ("**Final Score (1-5):** 2", 0.4),
        ("final score = [3]", 0.6),
        ("Final Score (4)", 0.8),
        ("FINAL SCORE:\n2.", 0.4),
        (r"Final Score: $\boxed{2}$", 0.4),
        ("Final Score: <4>", 0.8),
        ('Final Score: "4"', 0.8),
        ("Final Score is 4", 0.8),
        ("The final score is: **3.5**.", 0.7),
        ("<b>Final Score:</b> 4", 0.8),
        ("Final Score: 4,5", 0.9),
        ("Final Score: 4 out of 5", 0.8),
        ("Final Score: **4** / 5", 0.8),
        ("Final Score: 4, as it is sharp", 0.8),
        ("Final Score: 4 out of 10", NAN),
        ("Final Score: <4>/10", NAN),
        ("Final Score: 0.9", NAN),
        ("Final Score: 5.1", NAN),
        ("Final Score: -3", NAN),
        ("Final Score: 4/10", NAN),
        ("Final Score: 2, no: Final Score: 20", NAN),
        ("I cannot judge this. 4", NAN),
        ("Score: 4", NAN),
        ("", NAN),
    ],
)
def test_the_last_mark_on_the_scale_counts(answer: str, score: float) -> None:
    assert parse_mark(answer) == pytest.approx(score, nan_ok=True)


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


def test_each_image_gets_its_mark_and_no_mark_is_nan(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: f"Final Score: {pixel[0]}" if pixel[0] else "No idea."
    images, prompts, metadata = numbered(7)
    scores = judge(endpoint)(images, prompts, metadata)
    assert scores.reason == (
        "deqa: an answer of eye-7b has no mark from 1 to 5 after 'Final Score:'; it ends with "
        "'No idea.'"
    )
    np.testing.assert_array_equal(
        scores.score, np.array([NAN, 0.2, 0.4, 0.6, 0.8, 1.0, NAN], np.float32), strict=True
    )


def test_unifiedreward_is_asked_about_the_prompt_and_deqa_is_not(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: (
        f"Final Score: {5 if f'prompt number {pixel[0]}' in question else 1}"
    )
    assert judge(endpoint, "unifiedreward")(*numbered(3)).score.tolist() == [1, 1, 1]
    assert judge(endpoint)(*numbered(3)).score.tolist() == [np.float32(0.2)] * 3
    for body in endpoint.bodies:
        text = body["messages"][0]["content"][1]["text"]
        assert "from 1 to 5" in text
        assert text.endswith("Final Score: 3.5")
        assert "<" not in text
        assert "{prompt}" not in text
        assert body["model"] == "eye-7b"
        assert body["temperature"] == 0
        assert body["max_tokens"] == 512


def test_a_prompt_with_braces_is_sent_unchanged(endpoint: Endpoint) -> None:
    judge(endpoint, "unifiedreward")(numbered(1)[0], ["a sign {0} that says {prompt} and {}"], [{}])
    assert (
        "a sign {0} that says {prompt} and {}"
        in endpoint.bodies[0]["messages"][0]["content"][1]["text"]
    )


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
    client = scorer._connections.client()
    scorer(*numbered(1))
    assert scorer._connections.client() is client
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
    with pytest.raises(Unavailable, match=r"deqa: .* answered 429: too many"):
        judge(endpoint, attempts=1)(*numbered(3))


def test_an_endpoint_out_of_reach_is_unavailable(endpoint: Endpoint) -> None:
    away = build("deqa", url=f"http://127.0.0.1:{free_port()}/v1", model="eye-7b", attempts=2)
    with pytest.raises(Unavailable, match="no answer"):
        away(*numbered(3))
    with pytest.raises(Unavailable, match="no answer"):
        away.check()  # type: ignore[attr-defined]
    endpoint.seconds = 0.5
    with pytest.raises(Unavailable, match="ReadTimeout"):
        judge(endpoint, timeout=0.1, attempts=1)(*numbered(2))


def test_one_refused_image_costs_one_score_and_all_of_them_are_an_error(endpoint: Endpoint) -> None:
    refusal = JSONResponse({"error": "the prompt is too long"}, status_code=400)
    endpoint.answer = lambda pixel, question: refusal if pixel[0] == 1 else "Final Score: 5"
    np.testing.assert_array_equal(judge(endpoint)(*numbered(3)).score, [1, NAN, 1])
    endpoint.answer = lambda pixel, question: refusal
    with pytest.raises(RuntimeError, match=r"answered 400: .*the prompt is too long"):
        judge(endpoint)(*numbered(3))


def test_one_image_without_an_answer_costs_one_score(endpoint: Endpoint) -> None:
    busy = Response("too many", status_code=503)
    endpoint.answer = lambda pixel, question: busy if pixel[0] == 1 else "Final Score: 5"
    score = judge(endpoint, attempts=1)(*numbered(20)).score
    np.testing.assert_array_equal(
        score, np.where(np.arange(20) == 1, np.float32(NAN), np.float32(1))
    )
    refusal = JSONResponse({"error": "too long"}, status_code=400)
    endpoint.answer = lambda pixel, question: busy if pixel[0] == 1 else refusal
    with pytest.raises(Unavailable, match="503: too many"):
        judge(endpoint, attempts=1)(*numbered(3))


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
    with pytest.raises(TypeError, match=r"deqa: http://127\.0\.0\.1"):
        judge(endpoint)(*numbered(2))


def test_check_asks_which_models_are_served(endpoint: Endpoint) -> None:
    judge(endpoint).check()
    with pytest.raises(ValueError, match="does not serve 'ear-7b'; it serves eye-7b"):
        build("deqa", url=endpoint.url, model="ear-7b").check()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="answered 404"):
        build("deqa", url=endpoint.url + "/elsewhere", model="eye-7b").check()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "unifiedreward: model = '' must name the model"),
        ({"model": "m", "url": "localhost:8000/v1"}, "must be an address"),
        ({"model": "m", "concurrency": 0}, "concurrency = 0"),
    ],
)
def test_bad_settings(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("unifiedreward", **options)
