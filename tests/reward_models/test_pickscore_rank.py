"""PickScore's rank in a group: a PickScore that is given, and a tiny random model from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

import reward_models
from reward_models.doctor import OK, examine
from reward_models.pickscore import PickScore
from reward_models.pickscore_rank import PickScoreRank, mean_ranks
from tests.reward_models import tiny

NAN = float("nan")


@pytest.mark.parametrize(
    "values, ranks",
    [
        ([0.3, 0.1, 0.2], [1, 0, 0.5]),
        ([5, 5, 1], [0.75, 0.75, 0]),
        ([2, 2, 2, 2], [0.5] * 4),
        ([1, NAN, 3, np.inf], [0, NAN, 1, NAN]),
        ([1, NAN], [NAN, NAN]),
        ([], []),
    ],
)
def test_ranks_by_hand(values: list[float], ranks: list[float]) -> None:
    np.testing.assert_array_equal(mean_ranks(np.array(values)), ranks)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=9))
def test_ranks_agree_with_scipy_and_have_mean_a_half(values: list[int]) -> None:
    ranks = mean_ranks(np.array(values, float))
    np.testing.assert_allclose(ranks, (rankdata(values) - 1) / (len(values) - 1))
    assert ranks.mean() == pytest.approx(0.5)


def test_each_group_is_ranked_by_itself(tmp_path: Path) -> None:
    path = str(tiny.save_clip(tmp_path))
    images, prompts, n = tiny.images(6), ["a dog"] * 6, 6
    groups = np.array([3, 8, 3, 8, 3, 8])
    score = PickScore(path=path)(images, prompts, [{}] * n).score
    scorer = reward_models.build("pickscore_rank", path=path, batch_size=4)
    assert isinstance(scorer, PickScoreRank) and reward_models.compares(scorer)
    result = scorer(images, prompts, [{}] * n, groups)
    assert result.score.dtype == np.float32
    for rows in (groups == 3, groups == 8):
        assert result.score[rows].tolist() == ((rankdata(score[rows]) - 1) / 2).tolist()
    np.testing.assert_allclose(result.extras["pickscore"], score, atol=1e-5)


def test_the_doctor_ranks_the_golden_images() -> None:
    report = examine("rank", "tests.reward_models.checked:Rank", {})
    assert (report.state, report.why) == (OK, "")
    assert report.scores == {"noise": 0, "text": 0.5, "plain": 1}


def test_missing_weights_name_its_own_option() -> None:
    with pytest.raises(ValueError, match=r"rewards\.scorers\.pickscore_rank\.path"):
        reward_models.build("pickscore_rank", path="/no/such/folder")
