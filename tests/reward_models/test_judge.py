"""The judges in words: what they ask, and what becomes of the answers."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response

from reward_models import build
from reward_models.base import Unavailable
from reward_models.judge import Judge
from reward_models.judge_base import shrink
from tests.reward_models.judged import NAN, Endpoint, completion, judge, numbered, refusal


def asked(endpoint: Endpoint) -> list[str]:
    """The texts of the questions."""
    contents = (body["messages"][0]["content"] for body in endpoint.bodies)
    return [part["text"] for content in contents for part in content if part["type"] == "text"]


def test_each_image_gets_its_mark_and_no_mark_is_nan(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: f"Final Score: {pixel[0]}" if pixel[0] else "No idea."
    scores = judge(endpoint)(*numbered(7))
    np.testing.assert_array_equal(
        scores.score, np.array([NAN, 0.2, 0.4, 0.6, 0.8, 1.0, NAN], np.float32), strict=True
    )
    assert scores.extras == {}
    assert scores.reason == (
        "judge: 2 of 7 answers: no mark from 1 to 5 after 'Final Score:'. The first such answer "
        "of eye-7b: 'No idea.'"
    )


def test_the_first_answer_without_a_mark_is_kept_and_shown_whole(endpoint: Endpoint) -> None:
    scorer = judge(endpoint)
    endpoint.answer = lambda pixel, question: completion("I cannot see\n" * 40, cut=True)
    first = scorer(*numbered(1)).reason
    assert repr("I cannot see\n" * 40) in first
    assert first.endswith(" (cut off after max_tokens = 512)")
    endpoint.answer = lambda pixel, question: "Something else"
    assert scorer(*numbered(1)).reason == first
    endpoint.answer = lambda pixel, question: "begins" + " and" * 1000 + " ends"
    assert len(judge(endpoint)(*numbered(1)).reason) < 800
    for words in ("'begins and", " [...] ", "and ends'"):
        assert words in judge(endpoint)(*numbered(1)).reason


def test_the_projects_questions(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: (
        f"Final Score: {5 if f'prompt number {pixel[0]}' in question else 1}"
    )
    assert judge(endpoint)(*numbered(3)).score.tolist() == [1, 1, 1]
    assert judge(endpoint, question="quality")(*numbered(3)).score.tolist() == [np.float32(0.2)] * 3
    for text in asked(endpoint):
        assert "from 1 to 5" in text
        assert "steps of a tenth are allowed" in text
        assert text.endswith("Final Score: 3.5")
        assert "<" not in text
        assert "{prompt}" not in text
    for body in endpoint.bodies:
        assert body["model"] == "eye-7b"
        assert body["temperature"] == 0
        assert body["max_tokens"] == 512
        assert "logprobs" not in body


def test_unifiedreward_asks_the_published_question(endpoint: Endpoint) -> None:
    judge(endpoint, "unifiedreward")(*numbered(1))
    judge(endpoint, "unifiedreward", question="unifiedreward_flow_grpo")(*numbered(1))
    published, flow_grpo = asked(endpoint)
    for text in (published, flow_grpo):
        assert text.startswith("You are given a text caption and a generated image based on that")
        assert "assign a score from 1 to 5 after 'Final Score:'.\n" in text
        assert text.endswith("Text Caption: [prompt number 0]")
    assert "'element (type): value'" in published
    assert "'element (type): value'" not in flow_grpo


def test_a_question_of_ones_own_is_asked(endpoint: Endpoint) -> None:
    mine = "Is {prompt} pretty? Say why, then Final Score: 1 to 5."
    judge(endpoint, question=mine)(*numbered(1))
    assert asked(endpoint) == ["Is prompt number 0 pretty? Say why, then Final Score: 1 to 5."]


def test_a_prompt_with_braces_is_sent_unchanged(endpoint: Endpoint) -> None:
    judge(endpoint)(numbered(1)[0], ["a sign {0} that says {prompt} and {}"], [{}])
    assert "a sign {0} that says {prompt} and {}" in asked(endpoint)[0]


def test_log_probabilities_part_equal_marks(endpoint: Endpoint) -> None:
    def answer(pixel: list[int], question: str) -> Response:
        likely = {"4": 0.7, "5": 0.2 + 0.1 * pixel[0], "3": 0.1 - 0.1 * pixel[0] + 1e-9}
        return completion(
            "Final Score: 4", ("Final Score: ", {"Final Score: ": 1.0}), ("4", likely)
        )

    endpoint.answer = answer
    scores = judge(endpoint, logprobs=True)(*numbered(2))
    np.testing.assert_allclose(scores.score, [4.1 / 5, 4.3 / 5], rtol=1e-6)
    np.testing.assert_allclose(scores.extras["mass"], [1, 1], rtol=1e-6)
    (first, _), (text, _) = endpoint.bodies, asked(endpoint)
    assert (first["logprobs"], first["top_logprobs"]) == (True, 20)
    assert text.endswith("Final Score: 3"), "whole marks"
    assert "tenth" not in text


def test_the_extra_body_is_part_of_the_request(endpoint: Endpoint) -> None:
    judge(endpoint, extra_body={"seed": 7, "chat_template_kwargs": {"thinking": False}})(
        *numbered(1)
    )
    (body,) = endpoint.bodies
    assert body["seed"] == 7
    assert body["chat_template_kwargs"] == {"thinking": False}
    assert body["model"] == "eye-7b"


@pytest.mark.parametrize(
    "size, sent", [(0, (30, 20)), (30, (30, 20)), (15, (15, 10)), (1, (1, 1)), (900, (30, 20))]
)
def test_the_image_is_sent_with_its_longest_side_at_most_so_long(
    endpoint: Endpoint, size: int, sent: tuple[int, int]
) -> None:
    judge(endpoint, image_size=size)(np.zeros((1, 20, 30, 3), np.uint8), ["a"], [{}])
    assert endpoint.sizes == [sent]


def test_a_shrunk_image_is_the_mean_of_its_parts() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 200  # stripes of one pixel, which must not survive as stripes
    inner = shrink(image, 8)[1:-1, 1:-1].astype(int)
    assert abs(inner - 100).max() <= 3


def test_one_refused_image_costs_one_score_and_all_of_them_are_an_error(endpoint: Endpoint) -> None:
    long = refusal("the prompt is too long")
    endpoint.answer = lambda pixel, question: long if pixel[0] == 1 else "Final Score: 5"
    scores = judge(endpoint)(*numbered(3))
    np.testing.assert_array_equal(scores.score, [1, NAN, 1])
    assert scores.reason.startswith("1 of 3 images: judge: ")
    assert "the prompt is too long" in scores.reason
    endpoint.answer = lambda pixel, question: long
    with pytest.raises(RuntimeError, match=r"answered 400: .*the prompt is too long"):
        judge(endpoint)(*numbered(3))


def test_a_refusal_and_an_answer_without_a_mark_are_both_shown(endpoint: Endpoint) -> None:
    long = refusal("the prompt is too long")
    endpoint.answer = lambda pixel, question: long if pixel[0] == 1 else "Nice"
    reason = judge(endpoint)(*numbered(3)).reason
    assert "the prompt is too long" in reason
    assert "judge: 2 of 3 answers: no mark" in reason and "'Nice'" in reason


def test_one_image_without_an_answer_costs_one_score(endpoint: Endpoint) -> None:
    busy = Response("too many", status_code=503)
    endpoint.answer = lambda pixel, question: busy if pixel[0] == 1 else "Final Score: 5"
    score = judge(endpoint, attempts=1)(*numbered(20)).score
    np.testing.assert_array_equal(
        score, np.where(np.arange(20) == 1, np.float32(NAN), np.float32(1))
    )
    odd = JSONResponse({"error": "too long"}, status_code=400)
    endpoint.answer = lambda pixel, question: busy if pixel[0] == 1 else odd
    with pytest.raises(Unavailable, match="503: too many"):
        judge(endpoint, attempts=1)(*numbered(3))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"model": ""}, "judge: model = '' must name the model"),
        ({"url": "localhost:8000/v1"}, "must be an address"),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"logprobs": "False"}, "judge: logprobs = 'False' must be True or False"),
        ({"image_size": -1}, "image_size = -1 must be a number of pixels"),
        ({"question": "qualty"}, "question = 'qualty' is none of quality, alignment, unifiedrew"),
        ({"question": "Is it nice?"}, "asks for a mark from 1 to 5 after 'Final Score:'"),
        ({"extra_body": "seed"}, "extra_body = 'seed' must be a dict"),
        ({"extra_body": {"model": "x"}}, "extra_body.model is not allowed: it is the option model"),
        ({"extra_body": {"logprobs": True}}, "extra_body.logprobs is not allowed: it is an option"),
        ({"levels": 3}, "'judge' does not take the options"),
    ],
)
def test_bad_settings(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("judge", **{"model": "m", **options})


def test_unifiedreward_is_a_judge_with_another_question() -> None:
    scorer = build("unifiedreward", model="m", logprobs=True, max_tokens=9, image_size=512)
    assert isinstance(scorer, Judge)
    assert (scorer.name, scorer.logprobs, scorer.max_tokens) == ("unifiedreward", True, 9)
    assert scorer.image_size == 512
