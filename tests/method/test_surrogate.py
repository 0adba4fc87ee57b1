"""The clipped surrogate and grpo by hand: clipping, weights, KL, and ratios 1e-5 from 1 in fp32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tp_grpo.method.objectives.grpo import grpo
from tp_grpo.method.objectives.surrogate import clipped, ratio_stats
from tp_grpo.method.points import Points, Predictions, Schedule
from tp_grpo.types import Loss

HALF = 0.5 * math.pi  # `x' - mean_old` below; any number but 0


def vector(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


RATIO, ADVANTAGE = vector(1.5, 1.5, 0.5, 0.5, 1.0), vector(2, -2, 2, -2, 3)


def test_clipping_only_takes_gains_away() -> None:
    """With eps = 0.2 a ratio of 1.5 counts as 1.2 for A > 0, and 0.5 as 0.8 for A < 0."""
    got = clipped(RATIO.log(), ADVANTAGE, 0.2)
    torch.testing.assert_close(got, vector(-2.4, 3.0, -1.0, 1.6, -3.0))


def test_clipped_samples_have_no_gradient() -> None:
    log_ratio = vector(1.5, 1.5, 0.5, 0.5, 1.1).log().requires_grad_()
    clipped(log_ratio, ADVANTAGE, 0.2).mean().backward()
    torch.testing.assert_close(log_ratio.grad, vector(0, 3.0, -1.0, 0, -3.3) / 5)


def test_statistics_by_hand() -> None:
    stats = ratio_stats(RATIO.log(), 0.2)
    assert stats["clip_high"].item() == pytest.approx(2 / 5)
    assert stats["clip_low"].item() == pytest.approx(2 / 5)
    spread = 2 * math.log(1.5) ** 2 + 2 * math.log(2) ** 2
    assert stats["approx_kl"].item() == pytest.approx(spread / 10)


def test_a_clip_range_of_1e_5_is_resolved_in_float32() -> None:
    """`1 + 1e-5` itself is known to 1 % only there, which is the distance of these ratios."""
    stats = ratio_stats(torch.tensor([0.999e-5, 1.001e-5, -0.999e-5, -1.002e-5]), 1e-5)
    assert stats["clip_high"] == 0.25
    assert stats["clip_low"] == 0.25


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"advantage has shape \(3, 1\), log_ratio has \(3,\)"):
        clipped(torch.zeros(3), torch.zeros(3, 1), 0.2)


def five(kind: str = "cps", weight: Tensor | None = None) -> tuple[Points, Tensor]:
    """Five points of one latent dim, and the old velocity: all 0 but the next states, HALF."""
    sigmas = torch.linspace(1, 0, 5, dtype=torch.float64)
    zeros = torch.zeros(5, 1, dtype=torch.float64)
    points = Points(
        x=zeros,
        sigma=sigmas[1],
        advantage=ADVANTAGE[:, None],
        weight=weight,
        candidates=zeros[:, None] + HALF,
        step=1,
        schedule=Schedule(kind, sigmas, 0.7),
    )
    return points, zeros


def moved_to(points: Points, ratio: Tensor) -> Tensor:
    """The velocities (5, 1) whose cps steps, of old mean 0, have these ratios.

    With next state h and mean m, `log ratio = m (2 h - m)`, hence `m = h - sqrt(h^2 - log ratio)`.
    """
    mean = HALF - (HALF**2 - ratio.log()).sqrt()
    unit = points.transition(torch.ones_like(points.x)).mean[:, 0]  # the mean is linear in v
    return (mean / unit)[:, None]


def loss_of(ratio: Tensor, beta: float = 0.0, **fields: Tensor) -> Loss:
    points, old = five(**fields)  # type: ignore[arg-type]
    v = moved_to(points, ratio)
    reference = old if beta else None
    return grpo(points, Predictions(v, old, reference), clip_range=0.2, beta=beta)


def test_grpo_by_hand() -> None:
    loss = loss_of(RATIO)
    assert loss.value.item() == pytest.approx((-2.4 + 3.0 - 1.0 + 1.6 - 3.0) / 5)
    assert loss.stats["policy"].item() == pytest.approx(-1.8 / 5)
    assert loss.stats["clip_high"].item() == pytest.approx(0.4)
    assert loss.stats["kl"].item() == 0


def test_the_kl_enters_with_beta_and_is_that_of_the_step() -> None:
    variance = (0.5 * math.sin(0.35 * math.pi)) ** 2
    mean = HALF - (HALF**2 - RATIO.log()).sqrt()
    kl = (mean**2 / (2 * variance)).mean().item()
    loss = loss_of(RATIO, beta=0.1)
    assert loss.stats["kl"].item() == pytest.approx(kl)
    assert loss.value.item() == pytest.approx(-0.36 + 0.1 * kl)


def test_weights_scale_the_surrogate_but_not_the_kl() -> None:
    weight = vector(2, 1, 0, 1, 1)
    loss = loss_of(RATIO, beta=0.1, weight=weight)
    assert loss.stats["policy"].item() == pytest.approx((-4.8 + 3.0 + 1.6 - 3.0) / 5)
    assert loss.stats["kl"].item() == pytest.approx(loss_of(RATIO, beta=0.1).stats["kl"].item())
    ones = loss_of(RATIO, beta=0.1, weight=torch.ones_like(weight))
    assert torch.equal(ones.value, loss_of(RATIO, beta=0.1).value)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_unchanged_policy_has_ratio_one_and_the_policy_gradient(kind: str) -> None:
    points, _ = five(kind)
    v = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v.requires_grad_()
    loss = grpo(points, Predictions(v, v.detach()), clip_range=1e-5, beta=0.0)
    assert loss.stats["approx_kl"] == loss.stats["clip_high"] == loss.stats["clip_low"] == 0
    (gradient,) = torch.autograd.grad(loss.value, v)
    step = points.transition(v)
    log_prob = -((HALF - step.mean) ** 2)
    if kind == "sde":
        log_prob = log_prob / (2 * step.std**2)
    (expected,) = torch.autograd.grad((-points.advantage * log_prob).mean(), v)
    torch.testing.assert_close(gradient, expected)


def test_statistics_are_detached_scalars_and_the_loss_is_not() -> None:
    points, old = five()
    v = old.clone().requires_grad_()
    loss = grpo(points, Predictions(v, old, old), clip_range=0.2, beta=0.5)
    assert loss.value.requires_grad
    for name, value in loss.stats.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
