"""Scorers that compare the images of a group get whole groups, nothing merged and nothing split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import reward_models
from reward_models import Scores
from tests.scorers import Contrast
from tp_grpo.rewards.batch import Batch
from tp_grpo.rewards.reward_set import RewardError, RewardSet
from tp_grpo.rewards.scorer_options import ScorerOptions
from tp_grpo.rewards.scorer_thread import ALONE, ScorerThread

BRIGHTNESS, CONTRAST = "tests.scorers:Brightness", "tests.scorers:Contrast"
NAN = float("nan")


def images_of(values: list[int]) -> np.ndarray:
    """Images whose every pixel is the value."""
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


@dataclass
class Fake:
    """score = the image's value; `calls` holds the groups of each call by id."""

    fails: Callable[[set[int]], Exception | None] = lambda groups: None
    calls: list[dict[int, list[int]]] = field(default_factory=list)
    scores_groups = True

    def __call__(self, images: Any, prompts: Any, metadata: Any, groups: np.ndarray) -> Scores:
        values = images[:, 0, 0, 0]
        assert len(prompts) == len(metadata) == len(groups) == len(images)
        self.calls.append({int(g): values[groups == g].tolist() for g in np.unique(groups)})
        if error := self.fails({*groups.tolist()}):
            raise error
        return Scores(values.astype(np.float32))


def run(
    fake: Any, values: list[int], groups: list[int], **options: Any
) -> tuple[list[float], ScorerThread]:
    thread = ScorerThread("fake", ScorerOptions(patience=0, **options), sleep=lambda _: None)
    n = len(values)
    batch = Batch(images_of(values), [""] * n, [{}] * n, np.array(groups))
    return thread.submit(fake, batch).result(timeout=10).score.tolist(), thread


def test_equal_images_of_a_group_are_not_merged() -> None:
    fake = Fake()
    score, _ = run(fake, [4, 4, 4, 8], [0, 0, 1, 1])
    assert fake.calls == [{0: [4, 4], 1: [4, 8]}]
    assert score == [4, 4, 4, 8]


def test_calls_hold_as_many_whole_groups_as_the_batch_size_allows() -> None:
    fake = Fake()
    score, _ = run(fake, [1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 1, 2, 2, 2], batch_size=5)
    assert fake.calls == [{0: [1, 3], 1: [2, 4]}, {2: [5, 6, 7]}]
    assert score == [1, 2, 3, 4, 5, 6, 7]


def test_a_group_above_the_batch_size_is_one_call() -> None:
    fake = Fake()
    run(fake, [1, 2, 3, 4, 5], [0, 0, 0, 1, 1], batch_size=2)
    assert fake.calls == [{0: [1, 2, 3]}, {1: [4, 5]}]


def test_a_group_that_fails_is_found_and_costs_no_other() -> None:
    fake = Fake(lambda groups: RuntimeError("odd") if 1 in groups else None)
    score, thread = run(fake, [1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2, 2])
    np.testing.assert_equal(score, [1, 2, NAN, NAN, 5, 6])
    assert not thread.broken and thread.error == "RuntimeError: odd"
    assert all(len(values) == 2 for call in fake.calls for values in call.values())


def test_out_of_memory_makes_calls_smaller_and_splits_no_group() -> None:
    fake = Fake(lambda groups: MemoryError() if len(groups) > 1 else None)
    score, thread = run(fake, list(range(8)), [0, 0, 1, 1, 2, 2, 3, 3])
    assert score == list(range(8)) and thread.largest == 2
    stuck = Fake(lambda groups: MemoryError())
    score, thread = run(stuck, [1, 2, 3], [0, 0, 0])
    assert np.isnan(score).all() and thread.largest == 3


def test_a_group_of_one_is_not_asked_about() -> None:
    fake = Fake()
    score, thread = run(fake, [1, 2, 3], [0, 1, 1])
    np.testing.assert_equal(score, [NAN, 2, 3])
    assert fake.calls == [{1: [2, 3]}] and thread.error == ALONE
    score, _ = run(fake, [1], [0])
    assert np.isnan(score).all() and len(fake.calls) == 1


def test_another_number_of_scores_stops_the_run_in_words() -> None:
    rewards = RewardSet({CONTRAST: 1.0})
    rewards.scorers[CONTRAST] = lambda *batch: [0.0]  # type: ignore[assignment]
    with pytest.raises(RewardError, match=r"the score of shape \(1,\) for 3 images"):
        rewards.score(images_of([1, 2, 3]), ["a"] * 3, [{}] * 3)


def test_a_prompt_s_images_are_a_group_unless_groups_are_given() -> None:
    images, prompts = images_of([0, 51, 102, 255]), ["a", "b", "a", "b"]
    rewards = RewardSet({CONTRAST: 1.0})
    by_prompt = rewards.score(images, prompts, [{}] * 4)
    np.testing.assert_allclose(by_prompt.total, [-0.2, -0.4, 0.2, 0.4], rtol=1e-6)
    given = rewards.submit(images, prompts, [{}] * 4, groups=np.array([5, 5, 9, 9])).result()
    np.testing.assert_allclose(given.total, [-0.1, 0.1, -0.3, 0.3], rtol=1e-6)


def test_an_image_that_is_not_finite_is_missing_from_its_group() -> None:
    rewards = RewardSet({CONTRAST: 1.0, BRIGHTNESS: 1.0})
    images, finite = (
        images_of([0, 0, 51, 255, 9, 9]),
        np.array([False, True, True, True, False, True]),
    )
    groups = np.array([0, 0, 0, 0, 1, 1])
    result = rewards.submit(images, ["a"] * 6, [{}] * 6, finite, groups=groups).result()
    np.testing.assert_allclose(result.scores[CONTRAST], [NAN, -0.4, -0.2, 0.6, NAN, NAN], rtol=1e-6)
    share = result.extras[f"{CONTRAST}/share"]
    np.testing.assert_allclose(share, [NAN, 1 / 3, 1 / 3, 1 / 3, NAN, NAN], rtol=1e-6)
    rewards.settle()
    assert rewards.errors[CONTRAST] == ALONE, "one of two is missing"
    assert int(result.scores[BRIGHTNESS].isnan().sum()) == 2


def test_it_adds_to_ordinary_scorers_and_leaves_theirs_as_they_are() -> None:
    images, prompts = images_of([0, 0, 255, 255]), ["a"] * 4
    rewards = RewardSet({BRIGHTNESS: 2.0, CONTRAST: 1.0})
    result = rewards.score(images, prompts, [{}] * 4)
    assert result.scores[BRIGHTNESS].tolist() == [0, 0, 1, 1]
    assert result.total.tolist() == [-0.5, -0.5, 2.5, 2.5]
    alone = rewards.submit(images, prompts, [{}] * 4, grouped=False).result()
    assert list(alone.scores) == [BRIGHTNESS] and alone.total.tolist() == [0, 0, 2, 2]
    others = rewards.submit(images, prompts, [{}] * 4, grouped=True).result()
    assert list(others.scores) == [CONTRAST] and others.total.tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_only_a_weight_makes_training_need_groups() -> None:
    assert RewardSet({CONTRAST: 1.0}).trains_groups
    assert not RewardSet({CONTRAST: 0.0, BRIGHTNESS: 1.0}).trains_groups
    assert not RewardSet({BRIGHTNESS: 1.0}).trains_groups


@pytest.mark.parametrize("name", ["Contrast", "contrast", "make_contrast"])
def test_a_class_a_function_or_a_factory_may_declare_groups(name: str) -> None:
    rewards = RewardSet({f"tests.scorers:{name}": 1.0})
    assert rewards.grouped == [f"tests.scorers:{name}"]
    total = rewards.score(images_of([0, 255]), ["a", "a"], [{}, {}]).total
    assert total.tolist() == [-0.5, 0.5]


def test_a_function_of_groups_may_have_options() -> None:
    scorer: Any = reward_models.build("tests.scorers:contrast", scale=4.0)
    batch = (images_of([0, 255]), ["a", "a"], [{}, {}], np.zeros(2, np.int64))
    assert scorer.scores_groups and scorer(*batch).tolist() == [-2, 2]


def test_one_that_takes_no_ids_is_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"scores_groups = True, so its call must .*, groups: "):
        reward_models.build("tests.scorers:Forgetful")


@pytest.mark.parametrize(
    "weight, sizes, message",
    [
        (1.0, {"sample.group_size": 1, "eval.members": 4}, "sample.group_size = 1: .* at least 2"),
        (1.0, {"sample.group_size": 4, "eval.members": 1}, "eval.members = 1: .* at least 2"),
        (0.0, {"sample.group_size": 4, "eval.members": 1}, "eval.members = 1: .* at least 2"),
        (0.0, {"sample.group_size": 1, "eval.members": 2}, ""),
    ],
)
def test_groups_of_one_are_refused_in_words(weight: float, sizes: dict, message: str) -> None:
    scorers = {CONTRAST: weight, BRIGHTNESS: 1.0}
    if not message:
        assert RewardSet(scorers, sizes).grouped == [CONTRAST]
        return
    with pytest.raises(ValueError, match=message):
        RewardSet(scorers, sizes)
    assert RewardSet({BRIGHTNESS: 1.0}, sizes).grouped == []


def test_groups_of_one_are_refused_before_a_scorer_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unbuildable(self: Contrast, size: int = 0) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(Contrast, "__init__", unbuildable)
    with pytest.raises(ValueError, match=r"eval\.members = 1"):
        RewardSet({CONTRAST: 1.0}, {"eval.members": 1})


def test_a_reward_server_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compares the images of a group.*drop remote"):
        RewardSet({CONTRAST: {"remote": "http://127.0.0.1:8090"}})
