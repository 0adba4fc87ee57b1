"""What a micro-batch looks at, read from rollouts of each kind: rows, targets, what is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from config import base
from tp_grpo.method import flow
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.method.points import Predictions
from tp_grpo.plan import make_plan
from tp_grpo.settings import Settings
from tp_grpo.train.points import PointReader
from tp_grpo.types import NoisedImages, SharedStates, Trajectories

LATENT, G = (2, 2), 4
SIGMAS = torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0])
NAN = torch.nan


@dataclass(frozen=True, eq=False)
class Cond:
    """A condition: the row's number."""

    number: Tensor


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reader(**fields: Any) -> PointReader:
    config = base.get_config()
    config.run_name = "points"
    config.sample.update(steps=5, window_start=1, window_size=3, groups_per_epoch=4, group_size=G)
    config.sample.batch_size = 2
    config.update_from_flattened_dict({n.replace("__", "."): v for n, v in fields.items()})
    settings = Settings.read(config)
    weight = settings.train.step_weight
    return PointReader(make_plan(settings, 1), SIGMAS, settings.sample, weight=weight)


def shared(seed: int, steps: list[int]) -> SharedStates:
    B = len(steps)
    return SharedStates(
        Cond(torch.arange(B) + 10 * seed),
        randn(B, *LATENT, seed=seed),
        torch.tensor(steps),
        randn(B, *LATENT, seed=seed + 1),
        randn(B, G, *LATENT, seed=seed + 2),
        randn(B, G, *LATENT, seed=seed + 3),
    )


def noised(seed: int, group: list[int]) -> NoisedImages:
    B = len(group)
    return NoisedImages(
        Cond(torch.arange(B)),
        randn(B, 2, *LATENT, seed=seed),
        torch.tensor([[0.8, 0.4]]).expand(B, 2),
        randn(B, 1, *LATENT, seed=seed + 1),
        torch.tensor(group),
    )


SHARED = {"sample__groups": "shared_state", "credit__name": "terminal"}


def test_a_shared_state_is_a_point_with_a_target_for_each_candidate() -> None:
    rollout, advantages = shared(1, [2, 1]), randn(2 * G, 1, seed=9)
    points, cond, stored = reader(**SHARED).read([rollout], [advantages], [(0, 0)])
    assert torch.equal(points.x, rollout.state)
    assert torch.equal(points.advantage, advantages.reshape(2, G))
    assert torch.equal(points.sigma, torch.tensor([0.6, 0.8]))
    assert torch.equal(points.candidates, rollout.candidates)
    assert torch.equal(points.clean, rollout.clean)
    assert torch.equal(stored, rollout.velocity)
    assert cond.number.tolist() == [10, 11]
    assert points.lost is not None
    assert not points.lost.any()


def test_rollouts_that_are_stacked_follow_one_another() -> None:
    rollouts = [shared(1, [2, 1]), shared(5, [3, 3])]
    advantages = [randn(2 * G, 1, seed=seed) for seed in (8, 9)]
    entries = [(0, 0), (1, 0)]
    points, cond, _ = reader(**SHARED).read(rollouts, advantages, entries)
    assert torch.equal(points.x, torch.cat([r.state for r in rollouts]))
    assert torch.equal(points.advantage, torch.cat(advantages).reshape(4, G))
    assert torch.equal(points.step, torch.tensor([2, 1, 3, 3]))
    assert cond.number.tolist() == [10, 11, 50, 51]


def test_the_weight_of_a_shared_state_is_that_of_its_step() -> None:
    weights = flow.step_weights("cps", SIGMAS, range(1, 4), noise_level=0.7)
    look = reader(**SHARED, train__step_weight="velocity").read(
        [shared(1, [3, 1])], [torch.ones(2 * G, 1)], [(0, 0)]
    )
    torch.testing.assert_close(look.points.weight, weights[[2, 0]])
    uniform = reader(**SHARED).read([shared(1, [3, 1])], [torch.ones(2 * G, 1)], [(0, 0)])
    assert uniform.points.weight is None


@pytest.mark.parametrize("name", ["grpo", "guard", "dppo", "matching"])
def test_a_candidate_that_overflowed_is_lost_and_its_group_trains_on(name: str) -> None:
    rollout, advantages = shared(1, [2, 1]), randn(2 * G, 1, seed=9)
    rollout.candidates[0, 1, 0, 0] = NAN
    rollout.clean[1, 3, 0, 0] = torch.inf
    advantages[[1, G + 3]] = 0  # of an image without a score
    look = reader(**SHARED).read([rollout], [advantages], [(0, 0)])
    assert look.points.lost is not None
    assert look.points.lost.nonzero().tolist() == [[0, 1], [1, 3]]
    v = look.stored.clone().requires_grad_()
    options = {"clip_range": 1e-5, "dppo_limit": 1e-5, "trust": 1.0, "beta": 0.0}
    options = {n: value for n, value in options.items() if n in OBJECTIVES[name].options}
    loss = OBJECTIVES[name].loss(look.points, Predictions(v, look.stored), **options)
    (gradient,) = torch.autograd.grad(loss.value, v)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).any(1).all()


def test_a_state_that_overflowed_loses_its_whole_group() -> None:
    rollout = shared(1, [2, 1])
    rollout.state[1, 0, 0] = NAN
    look = reader(**SHARED).read([rollout], [torch.zeros(2 * G, 1)], [(0, 0)])
    assert look.points.lost is not None
    assert look.points.lost.all(1).tolist() == [False, True]
    assert look.points.x[1].tolist() == [[0, 0], [0, 0]]
    assert look.stored[1].tolist() == [[0, 0], [0, 0]]


def test_a_step_of_a_trajectory_has_the_completion_it_led_to() -> None:
    """States 0, 2 and 3 of the window are completed: steps 0 and 1 both led to that of state 2."""
    fields = {
        "credit__name": "incremental",
        "sample__branch_every": 2,
        "objective__name": "matching",
    }
    r = reader(**fields)
    assert r.plan.completion.states == (0, 2, 3)
    rollout = Trajectories(
        Cond(torch.arange(2)),
        randn(2, 4, *LATENT, seed=1),
        randn(2, 3, *LATENT, seed=2),
        randn(2, 3, *LATENT, seed=3),
    )
    advantages = randn(2, 3, seed=4)
    for column, led_to in enumerate((1, 1, 2)):
        points, _, stored = r.read([rollout], [advantages], [(0, column)])
        assert torch.equal(points.x, rollout.states[:, column])
        assert torch.equal(points.candidates, rollout.states[:, column + 1, None])
        assert torch.equal(points.clean, rollout.clean[:, led_to, None])
        assert torch.equal(points.advantage, advantages[:, column, None])
        assert torch.equal(stored, rollout.velocities[:, column])
        assert points.step == 1 + column


NOISED = {"objective__name": "dgpo", "credit__name": "terminal", "sample__batch_size": 4}


def test_a_noised_image_is_a_point_at_each_of_its_times() -> None:
    rollout, advantages = noised(1, [7] * 4), randn(4, 1, seed=9)
    r = reader(**NOISED)
    for column, sigma in enumerate((0.8, 0.4)):
        points, _, stored = r.read([rollout], [advantages], [(0, column)])
        assert torch.equal(points.x, rollout.states[:, column])
        assert torch.equal(points.sigma, torch.full((4,), sigma))
        assert torch.equal(points.advantage, advantages), "the same at every time"
        assert torch.equal(points.clean, rollout.clean)
        assert stored is None


def test_groups_are_compared_at_one_time_however_many_are_stacked() -> None:
    """Else the weight of a group would depend on train.batch_size."""
    rollouts = [noised(1, [7] * 4), noised(5, [2] * 4)]
    advantages = [randn(4, 1, seed=seed) for seed in (8, 9)]
    r, entries = reader(**NOISED), [(0, 0), (0, 1), (1, 0), (1, 1)]
    options = {"dgpo_sharpness": 10.0, "dgpo_clip": 1e-3, "beta": 0.1}

    def weighed(part: list[tuple[int, int]]) -> Tensor:
        points = r.read(rollouts, advantages, part).points
        v = points.x.sin()
        loss = OBJECTIVES["dgpo"].loss(points, Predictions(v, v + 1e-5, v + 0.3), **options)
        return loss.value

    alone = torch.stack([weighed([entry]) for entry in entries]).mean()
    torch.testing.assert_close(weighed(entries), alone)
