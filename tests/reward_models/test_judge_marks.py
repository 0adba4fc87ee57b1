"""Marks in answers: written ones, and means over log-probabilities derived by hand."""

from __future__ import annotations

import math

import pytest

from reward_models.judge_marks import NoMark, Token, expected, mean_level, written


@pytest.mark.parametrize(
    "answer, mark",
    [
        ("Sharp and clean.\nFinal Score: 4", 4),
        ("Final Score: 1\nOn second thought\nFinal Score: 5", 5),
        ("**Final Score:** 4.5/5", 4.5),
        ("**Final Score (1-5):** 2", 2),
        ("final score = [3]", 3),
        ("Final Score (4)", 4),
        ("FINAL SCORE:\n2.", 2),
        (r"Final Score: $\boxed{2}$", 2),
        ("Final Score: <4>", 4),
        ('Final Score: "4"', 4),
        ("Final Score is 4", 4),
        ("The final score is: **3.5**.", 3.5),
        ("<b>Final Score:</b> 4", 4),
        ("Final Score: 4,5", 4.5),
        ("Final Score: 4 out of 5", 4),
        ("Final Score: **4** / 5", 4),
        ("Final Score: 4, as it is sharp", 4),
    ],
)
def test_the_last_mark_on_the_scale_counts(answer: str, mark: float) -> None:
    assert written(answer).value == mark


@pytest.mark.parametrize(
    "answer",
    [
        "Final Score: 4 out of 10",
        "Final Score: <4>/10",
        "Final Score: 0.9",
        "Final Score: 5.1",
        "Final Score: -3",
        "Final Score: 4/10",
        "Final Score: 2, no: Final Score: 20",
        "I cannot judge this. 4",
        "Score: 4",
        "",
    ],
)
def test_an_answer_without_a_mark_on_the_scale_has_none(answer: str) -> None:
    with pytest.raises(NoMark, match="no mark from 1 to 5 after 'Final Score:'"):
        written(answer)


def logs(**probabilities: float) -> dict[str, float]:
    return {token: math.log(p) for token, p in probabilities.items()}


LEVELS = {"good": 4.0, "poor": 2.0}


def test_the_mean_level_is_the_softmax_over_the_levels_alone() -> None:
    mark = mean_level(logs(good=0.6, poor=0.2, The=0.2), LEVELS)
    assert mark.value == pytest.approx((0.6 * 4 + 0.2 * 2) / 0.8)
    assert mark.mass == pytest.approx(0.8)


def test_a_level_that_is_not_listed_is_impossible() -> None:
    assert mean_level(logs(good=0.6), LEVELS).value == 4


@pytest.mark.parametrize("token", ["good", " good", "▁good", "Ġgood", "Good", "\ngood"])
def test_spaces_and_case_of_a_token_do_not_matter(token: str) -> None:
    mark = mean_level({token: math.log(0.6), "poor": math.log(0.2)}, LEVELS)
    assert mark.value == pytest.approx(3.5)


def test_of_two_tokens_for_a_level_the_likelier_counts() -> None:
    alternatives = {"good": math.log(0.1), " good": math.log(0.6), "poor": math.log(0.2)}
    assert mean_level(alternatives, LEVELS).value == pytest.approx(3.5)
    assert mean_level(alternatives, LEVELS).mass == pytest.approx(0.8)


@pytest.mark.parametrize("alternatives", [{}, logs(good=0.3, poor=0.1), {"good": math.nan}])
def test_levels_that_the_model_did_not_mean_are_no_mark(alternatives: dict[str, float]) -> None:
    with pytest.raises(NoMark, match=r"good, poor have .*% of the probability together"):
        mean_level(alternatives, LEVELS)


def plain(text: str) -> Token:
    return Token(text, {text: -0.1})


DIGIT = Token(" 4", {" 4": math.log(0.7), " 5": math.log(0.2), " 3": math.log(0.1)})


@pytest.mark.parametrize(
    "answer, tokens",
    [
        ("Final Score: 4", ["Final", " Score", ":", DIGIT]),
        ("4 cats.\nFinal Score: 4", ["4", " cats", ".\n", "Final", " Score", ":", DIGIT]),
        ("Final Score: 4 of 4 stars", ["Final", " Score:", DIGIT, " of", " 4", " stars"]),
        ("Final Score: 4/5", ["FinalScore:", DIGIT, "/", "5", "<|im_end|>"]),  # spaces are lost
        ("Final Score: 4.0", ["Final", " Score", ":", DIGIT, ".", "0"]),
    ],
)
def test_the_expected_mark_is_read_where_the_mark_is_written(
    answer: str, tokens: list[str | Token]
) -> None:
    places = [token if isinstance(token, Token) else plain(token) for token in tokens]
    mark = expected(answer, places)
    assert mark.value == pytest.approx(0.7 * 4 + 0.2 * 5 + 0.1 * 3)
    assert mark.mass == pytest.approx(1)


@pytest.mark.parametrize(
    "answer, tokens, words",
    [
        ("Final Score: 3.5", ["Final Score:", "3", ".", "5"], "the mark 3.5 is not whole"),
        ("Final Score: 4", ["Final Score", ":4"], "the mark 4 is part of the token ':4'"),
        ("Final Score: 4", ["Final Score", ":"], "the mark 4 is not among the tokens"),
        ("Four", ["Four"], "no mark from 1 to 5"),
    ],
)
def test_a_mark_without_its_own_probabilities_is_none(
    answer: str, tokens: list[str], words: str
) -> None:
    with pytest.raises(NoMark, match=words):
        expected(answer, [plain(token) for token in tokens])
