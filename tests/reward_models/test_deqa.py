"""DeQA-Score, against a local endpoint that gives log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.responses import Response

from tests.reward_models.judged import NAN, Endpoint, completion, judge, numbered, refusal

LIKELY = {
    " good": 0.5,
    " excellent": 0.2,
    " fair": 0.15,
    " poor": 0.05,
    " bad": 0.02,
    " great": 0.08,
}
# By hand: (0.5 x 4 + 0.2 x 5 + 0.15 x 3 + 0.05 x 2 + 0.02 x 1) / 0.92 / 5
SCORE = 3.57 / 0.92 / 5


def answers(pixel: list[int], question: str) -> Response:
    return completion(" good", (" good", LIKELY))


def test_the_score_is_the_mean_level_over_five(endpoint: Endpoint) -> None:
    endpoint.answer = answers
    scores = judge(endpoint, "deqa")(*numbered(2))
    np.testing.assert_array_equal(scores.score, np.float32([SCORE, SCORE]), strict=True)
    np.testing.assert_allclose(scores.extras["mass"], [0.92, 0.92], rtol=1e-6)


def test_the_published_question_is_asked_and_its_answer_begun(endpoint: Endpoint) -> None:
    endpoint.answer = answers
    judge(endpoint, "deqa", extra_body={"seed": 1})(*numbered(1))
    (body,) = endpoint.bodies
    asked, begun = body["messages"]
    assert [part["type"] for part in asked["content"]] == ["text", "image_url"]
    assert asked["content"][0]["text"] == "How would you rate the quality of this image?\n"
    assert begun == {"role": "assistant", "content": "The quality of the image is"}
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (1, 0, 1)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_what_continues_the_answer_can_be_changed(endpoint: Endpoint) -> None:
    endpoint.answer = answers
    judge(endpoint, "deqa", extra_body={"continue_final_message": False})(*numbered(1))
    assert endpoint.bodies[0]["continue_final_message"] is False


def test_a_model_that_was_about_to_say_something_else_gives_no_score(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: completion(
        "The", ("The", {"The": 0.9, " good": 0.05})
    )
    scores = judge(endpoint, "deqa")(*numbered(1))
    np.testing.assert_array_equal(scores.score, [NAN])
    assert "have 5.0% of the probability together after 'The quality of the image is'" in (
        scores.reason
    )
    assert "the scorer 'judge' with question='quality'" in scores.reason
    assert scores.reason.endswith("The first such answer of eye-7b: 'The'")


def test_the_limit_of_one_token_is_no_hint_that_the_answer_was_cut(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: completion("The", ("The", {"The": 1.0}), cut=True)
    assert judge(endpoint, "deqa")(*numbered(1)).reason.endswith("'The'")


def test_an_endpoint_without_log_probabilities_stops_the_run(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: " good"
    with pytest.raises(TypeError, match=r"deqa: .* answers without log-probabilities"):
        judge(endpoint, "deqa")(*numbered(1))
    endpoint.answer = lambda pixel, question: refusal("logprobs are not supported", "logprobs")
    with pytest.raises(TypeError, match=r"logprobs are not supported.*needs log-probabilities"):
        judge(endpoint, "deqa")(*numbered(1))


@pytest.mark.parametrize("option", ["max_tokens", "question", "logprobs"])
def test_options_of_a_judge_in_words_are_refused_with_its_name(
    endpoint: Endpoint, option: str
) -> None:
    words = f"it has no {option}.*the scorer 'judge' with question='quality'"
    with pytest.raises(ValueError, match=words):
        judge(endpoint, "deqa", **{option: 512})
