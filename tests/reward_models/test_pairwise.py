"""The pairwise judge, against a local endpoint that sees two images a question."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from reward_models import build, compares
from reward_models.base import Unavailable
from reward_models.pairwise import QUESTION, Pairwise, pairs, verdict
from tests.reward_models.judged import Endpoint, completion
from tests.reward_models.processes import free_port

NAN = float("nan")


class Arena(Endpoint):
    """Answers with `compare(first, second, question)`: the red values of both images."""

    def __init__(self) -> None:
        self.compare: Callable[[int, int, str], str | Response] = brighter
        self.met: list[tuple[int, int]] = []
        super().__init__()

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        *pictures, question = body["messages"][0]["content"]
        files = [picture["image_url"]["url"].partition(",")[2] for picture in pictures]
        images = [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]
        self.sizes += [image.size for image in images]
        first, second = (int(np.array(image)[0, 0, 0]) for image in images)
        self.met.append((first, second))
        answer = self.compare(first, second, question["text"])
        return answer if isinstance(answer, Response) else completion(answer)


def brighter(first: int, second: int, question: str) -> str:
    return f"It is brighter.\nImage {1 if first > second else 2} is better"


@pytest.fixture(scope="module")
def running() -> Iterator[Arena]:
    arena = Arena()
    yield arena
    arena.server.should_exit = True
    arena.thread.join()


@pytest.fixture
def arena(running: Arena, monkeypatch: pytest.MonkeyPatch) -> Arena:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    running.forget()
    running.compare, running.met = brighter, []
    return running


def judge(arena: Arena, **options: object) -> Pairwise:
    scorer = build("pairwise", **{"url": arena.url, "model": "eye-7b", "timeout": 10, **options})
    assert isinstance(scorer, Pairwise) and compares(scorer)
    return scorer


Batch = tuple[np.ndarray, list[str], list[dict], np.ndarray]


def batch(values: list[int], groups: list[int]) -> Batch:
    """Plain images of these red values, with a prompt that names the group."""
    images = np.zeros((len(values), 8, 8, 3), np.uint8)
    images[..., 0] = np.array(values)[:, None, None]
    return images, [f"prompt of {g}" for g in groups], [{}] * len(values), np.array(groups)


@pytest.mark.parametrize(
    "answer, win",
    [
        ("Sharp.\nImage 1 is better", 1),
        ("<think>so so</think><answer>Image 2 is better</answer>", 0),
        ("**Image 1** is better.", 1),
        ("Image 1 is better in colour, but on the whole Image 2 is better.", 0),
        ("image 2 is clearly better", 0),
        ("Neither is better", 0.5),
        ("Neither image is better.", 0.5),
        ("Image 1 is not better", NAN),
        ("Image 12 is better", NAN),
        ("I prefer the first.", NAN),
        ("", NAN),
    ],
)
def test_the_last_verdict_counts(answer: str, win: float) -> None:
    assert verdict(answer) == pytest.approx(win, nan_ok=True)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 24])
def test_all_pairs_meet_once_and_each_image_is_first_in_half_of_its_pairs(n: int) -> None:
    chosen = pairs(n)
    assert len(chosen) == len({frozenset(pair) for pair in chosen}) == n * (n - 1) // 2
    firsts = Counter(first for first, _ in chosen)
    assert all(abs(firsts[i] - (n - 1) / 2) <= 0.5 for i in range(n))
    assert pairs(n, n - 1 if n % 2 else n) == chosen, "more opponents than there are"


@pytest.mark.parametrize("n, opponents", [(5, 2), (6, 2), (6, 4), (24, 8)])
def test_opponents_limit_the_pairs_alike_for_every_image(n: int, opponents: int) -> None:
    chosen = pairs(n, opponents)
    assert len(chosen) == len({frozenset(pair) for pair in chosen}) == n * opponents // 2
    met = Counter(i for pair in chosen for i in pair)
    assert set(met.values()) == {opponents} and len(met) == n
    assert set(Counter(first for first, _ in chosen).values()) == {opponents // 2}


def test_the_score_is_the_share_of_its_group_that_an_image_beats(arena: Arena) -> None:
    scores = judge(arena)(*batch([30, 10, 20, 7, 5], [0, 0, 0, 1, 1]))
    np.testing.assert_allclose(scores.score, [1, 0, 0.5, 1, 0])
    assert len(arena.bodies) == 3 + 1, "3 images take 3 questions, 2 take one"
    assert scores.extras["answered"].tolist() == [1] * 5 and scores.reason == ""
    assert {frozenset(pair) for pair in arena.met} == {
        frozenset(pair) for pair in [(30, 10), (30, 20), (10, 20), (7, 5)]
    }


def test_the_question_shows_the_prompt_after_two_images(arena: Arena) -> None:
    judge(arena, image_size=4)(*batch([1, 2], [7, 7]))
    (body,) = arena.bodies
    *pictures, question = body["messages"][0]["content"]
    assert [part["type"] for part in pictures] == ["image_url"] * 2
    assert question["text"] == QUESTION.replace("{prompt}", "prompt of 7")
    assert body["max_tokens"] == 512 and arena.sizes == [(4, 4)] * 2
    own = "Which fits {prompt}? Say 'Image 1 is better' or 'Image 2 is better'."
    judge(arena, question=own)(*batch([1, 2], [7, 7]))
    assert arena.bodies[1]["messages"][0]["content"][2]["text"] == own.replace(
        "{prompt}", "prompt of 7"
    )


def test_a_tie_is_half_a_win_and_equal_images_are_not_asked_about(arena: Arena) -> None:
    arena.compare = lambda first, second, question: "Neither is better"
    assert judge(arena)(*batch([1, 2], [0, 0])).score.tolist() == [0.5, 0.5]
    arena.met, arena.compare = [], brighter
    scores = judge(arena)(*batch([4, 4, 9], [0, 0, 0]))
    np.testing.assert_allclose(scores.score, [0.25, 0.25, 1])
    assert len(arena.met) == 2 and scores.extras["answered"].tolist() == [1] * 3
    alike = judge(arena)(*batch([4, 4, 4], [0, 0, 0]))
    assert alike.score.tolist() == [0.5] * 3


def test_opponents_limit_the_questions(arena: Arena) -> None:
    judge(arena, opponents=2)(*batch([1, 2, 3, 4, 5, 6], [0] * 6))
    assert len(arena.met) == 6


def test_an_answer_without_a_verdict_counts_for_neither(arena: Arena) -> None:
    def answer(first: int, second: int, question: str) -> str:
        return "Who knows?" if {first, second} == {1, 3} else brighter(first, second, question)

    arena.compare = answer
    scores = judge(arena)(*batch([1, 2, 3], [0] * 3))
    np.testing.assert_allclose(scores.score, [0, 0.5, 1])
    np.testing.assert_allclose(scores.extras["answered"], [0.5, 1, 0.5])
    assert scores.reason == (
        "pairwise: 1 of 3 comparisons have no verdict: an answer does not say which image is "
        "better. The first such answer of eye-7b: 'Who knows?'"
    )
    arena.compare = lambda first, second, question: "Who knows?"
    nothing = judge(arena)(*batch([1, 2, 3], [0] * 3))
    assert np.isnan(nothing.score).all() and nothing.extras["answered"].tolist() == [0] * 3


def test_a_refused_question_costs_one_comparison_and_all_of_them_are_an_error(arena: Arena) -> None:
    refusal = JSONResponse({"error": "filtered"}, status_code=400)
    arena.compare = lambda first, second, question: (
        refusal if 1 in (first, second) else brighter(first, second, question)
    )
    scores = judge(arena)(*batch([1, 2, 3], [0] * 3))
    np.testing.assert_allclose(scores.score, [NAN, 0, 1])
    arena.compare = lambda first, second, question: refusal
    with pytest.raises(RuntimeError, match=r"answered 400: .*filtered"):
        judge(arena)(*batch([1, 2, 3], [0] * 3))


def test_an_endpoint_out_of_reach_is_unavailable() -> None:
    away = build("pairwise", url=f"http://127.0.0.1:{free_port()}/v1", model="m", attempts=1)
    with pytest.raises(Unavailable, match="no answer"):
        away(*batch([1, 2], [0, 0]))  # type: ignore[call-arg]


def test_check_asks_which_models_are_served(arena: Arena) -> None:
    judge(arena).check()
    with pytest.raises(ValueError, match="does not serve 'ear-7b'"):
        judge(arena, model="ear-7b").check()


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "pairwise: model = '' must name the model"),
        ({"model": "m", "question": "Which one?"}, "asks for no verdict"),
        ({"model": "m", "opponents": 3}, "opponents = 3 must be even, .* nearest are 2 and 4"),
        ({"model": "m", "opponents": -2}, "opponents = -2 must be a number of images"),
        ({"model": "m", "concurrency": 0}, "concurrency = 0"),
    ],
)
def test_bad_settings(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("pairwise", **options)
