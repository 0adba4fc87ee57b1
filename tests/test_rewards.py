"""RewardSet: names, weights, failures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reward_models
from tp_grpo.rewards import RewardError, RewardSet, check_failed, mean_and_error, to_uint8

IMAGES = to_uint8(torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8))
BRIGHTNESS = "tests.scorers:Brightness"


def test_weights_add_up_and_a_scorer_of_ones_own_is_a_dotted_path() -> None:
    reward_models.register("brightness", BRIGHTNESS)
    rewards = RewardSet({"brightness": 2.0, BRIGHTNESS: {"weight": -1, "scale": 0.5}})
    result = rewards.submit(IMAGES, [""] * 4, [{}] * 4).result()
    expected = torch.from_numpy(IMAGES).float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(result.scores["brightness"], expected)
    torch.testing.assert_close(result.total, 1.5 * expected)


def test_images_are_quantised_by_rounding() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 0, 1, 255] and to_uint8(values).dtype == np.uint8


@pytest.mark.parametrize(
    "scorers, message",
    [
        ({}, "rewards.scorers is empty"),
        ({"shape": 1.0}, "no scorer is called 'shape'; did you mean 'shapes'"),
        ({"shapes": {"exact": 1}}, "'shapes' does not take the options"),
        ({"tests.scorers:Nobody": 1.0}, "cannot be imported"),
        ({"shapes": {"weight": "much"}}, "weight = 'much' is not a number"),
        ({"shapes": {"weight": float("nan")}}, "weight = nan is not a number"),
    ],
)
def test_bad_settings(scorers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSet(scorers)


def test_a_scorer_that_raises_is_named() -> None:
    rewards = RewardSet({"tests.scorers:Raises": {"calls": 0}})
    with pytest.raises(
        RewardError, match=r"'tests.scorers:Raises' failed with RuntimeError: the engine is out of fuel"
    ):
        rewards.submit(IMAGES, [""] * 4, [{}] * 4).result()


def test_too_many_failures_are_named_with_their_share() -> None:
    score = torch.tensor([1.0, float("nan"), 0.0, 2.0])
    assert check_failed({"a": score}, 0.25) == 0.25
    with pytest.raises(RewardError, match=r"'a' gave no score \(NaN\) for 1 of 4 images, 25%"):
        check_failed({"a": score}, 0.2)


def test_what_is_not_finite_is_no_score_and_a_wrong_length_is_named() -> None:
    class Odd:
        def __init__(self, values: list[float]) -> None:
            self.values = values

        def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> reward_models.Scores:
            return reward_models.Scores(np.array(self.values))

    rewards = RewardSet({BRIGHTNESS: 1.0})
    rewards.scorers[BRIGHTNESS] = Odd([1.0, np.inf, -np.inf, np.nan])
    assert rewards.score(IMAGES, [""] * 4, [{}] * 4).total.isnan().tolist() == [False, True, True, True]
    rewards.scorers[BRIGHTNESS] = Odd([1.0])
    with pytest.raises(RewardError, match=r"Brightness' failed with ValueError: .*shape \(1,\) for 4 images"):
        rewards.score(IMAGES, [""] * 4, [{}] * 4)


def test_errors_are_over_prompts_not_images() -> None:
    values = torch.tensor([0.0, 1.0, 0.2, 0.6, float("nan"), 5.0])
    mean, error = mean_and_error(values[:5], ["a", "b", "a", "b", "c"])
    assert mean == pytest.approx(0.45) and error == pytest.approx((0.8 - 0.1) / 2)  # means 0.1 and 0.8, c has none
    repeated = mean_and_error(values[:4].repeat(10), ["a", "b", "a", "b"] * 10)
    assert repeated == pytest.approx((mean, error)), "the same images again tell nothing new"
