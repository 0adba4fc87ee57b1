"""From ladders and scores to advantages as the settings say: joint statistics, several scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from tp_grpo.method.advantage import group_normalize, whiten
from tp_grpo.plan import make_plan
from tp_grpo.settings import Settings
from tp_grpo.train.credit import credit_steps
from tp_grpo.train.gather import Gathered

Smoke = Callable[..., ConfigDict]
GROUP = torch.tensor([3, 3, 3, 3, 8, 8, 8, 8])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def advantages(
    config: ConfigDict, scores: dict[str, Tensor], forks: Tensor | None = None
) -> Tensor:
    """Of scores that are summed by their weights."""
    settings = Settings.read(config)
    weights = {name: options["weight"] for name, options in settings.rewards.scorers.items()}
    total = sum(weights[name] * score for name, score in scores.items())
    samples = Gathered(torch.as_tensor(total), GROUP, scores, {})
    return credit_steps(settings, make_plan(settings, 1), samples, forks)[1]


def with_scorers(config: ConfigDict, **weights: float) -> ConfigDict:
    with config.unlocked():
        config.rewards.scorers = ConfigDict({n: {"weight": w} for n, w in weights.items()})
    return config


def test_joint_statistics_are_of_all_steps_of_a_group(smoke: Smoke) -> None:
    """So that a step that gains more than the others keeps its sign in every image."""
    ladder = torch.zeros(8, 3).double()
    ladder[:, 1] = 1 + 0.1 * randn(8, seed=1)  # the first step gains about 1, the second about 2
    ladder[:, 2] = ladder[:, 1] + 2 + 0.1 * randn(8, seed=2)
    config = smoke(credit__name="incremental", advantage__global_std=False)
    config.advantage.over = "joint"
    got = advantages(with_scorers(config, a=1.0), {"a": ladder})
    gains = ladder.diff(dim=1)
    for g in (3, 8):
        of_group = gains[g == GROUP]
        mean, std = of_group.mean(), of_group.std(correction=0)
        torch.testing.assert_close(got[g == GROUP], (of_group - mean) / (std + 1e-4))
    assert (got[:, 0] < 0).all()
    assert (got[:, 1] > 0).all()


def test_by_step_a_step_that_gains_more_is_no_better(smoke: Smoke) -> None:
    gains = randn(8, 2, seed=1)
    ladder = torch.cat([torch.zeros(8, 1).double(), gains], 1).cumsum(1)
    config = with_scorers(smoke(credit__name="incremental"), a=1.0)
    higher = ladder + torch.tensor([0.0, 0.0, 7.0])
    torch.testing.assert_close(advantages(config, {"a": ladder}), advantages(config, {"a": higher}))


def gdpo(smoke: Smoke, **weights: float) -> ConfigDict:
    config = smoke("flow_grpo", advantage__combine="gdpo", advantage__global_std=False)
    return with_scorers(config, **weights)


def test_no_score_drowns_another(smoke: Smoke) -> None:
    """Each is normalised in its group, weighted and summed; the sum is whitened over the epoch."""
    scores = {"a": randn(8, 1, seed=1), "b": 1000 * randn(8, 1, seed=2) + 50}
    got = advantages(gdpo(smoke, a=1.0, b=0.5), scores)
    total = group_normalize(scores["a"], GROUP) + 0.5 * group_normalize(scores["b"], GROUP)
    expected = whiten(total, torch.ones(8, 1, dtype=torch.bool))
    torch.testing.assert_close(got, expected.expand_as(got))
    scores["b"] = scores["b"] / 1000
    again = advantages(gdpo(smoke, a=1.0, b=0.5), scores)
    torch.testing.assert_close(again, got, rtol=1e-2, atol=1e-3)


def test_a_score_of_weight_0_is_no_part_of_it(smoke: Smoke) -> None:
    scores = {"a": randn(8, 1, seed=1), "b": randn(8, 1, seed=2)}
    alone = advantages(gdpo(smoke, a=1.0), {"a": scores["a"]})
    assert torch.equal(advantages(gdpo(smoke, a=1.0, b=0.0), scores), alone)


def test_an_image_without_a_score_has_no_advantage(smoke: Smoke) -> None:
    scores = {"a": randn(8, 1, seed=1), "b": randn(8, 1, seed=2)}
    scores["b"][2] = torch.nan
    got = advantages(gdpo(smoke, a=1.0, b=1.0), scores)
    assert got[2].tolist() == [0.0, 0.0]
    assert got.isfinite().all()


def test_whitened_advantages_are_clipped(smoke: Smoke) -> None:
    config = gdpo(smoke, a=1.0)
    config.advantage.clip = 0.5
    assert advantages(config, {"a": randn(8, 1, seed=1)}).abs().max() == 0.5


@pytest.mark.parametrize("global_std", [True, False])
def test_forks_pool_the_std_of_shared_states(smoke: Smoke, global_std: bool) -> None:
    fields: dict[str, Any] = {"sample__groups": "shared_state", "sample__batch_size": 1}
    config = smoke("flow_grpo", advantage__global_std=global_std, **fields)
    reward, forks = randn(8, 1, seed=1), torch.tensor([0] * 4 + [1] * 4)
    got = advantages(with_scorers(config, a=1.0), {"a": reward}, forks)
    assert got.shape == (8, 1), "an image has one action"
    options = {"global_std": True, "std_id": forks} if global_std else {}
    torch.testing.assert_close(got, group_normalize(reward, GROUP, **options))
