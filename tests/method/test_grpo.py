"""The clipped surrogate by hand, and its gradient by autograd."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.objectives.grpo import grpo

SIGMAS = torch.linspace(1, 0, 11, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    ratio, advantage, kl = (
        vector(1.5, 1.5, 0.5, 0.5, 1.0),
        vector(2.0, -2.0, 2.0, -2.0, 3.0),
        vector(1, 2, 3, 4, 5),
    )
    got = grpo(ratio.log(), advantage, kl, clip_range=0.2, beta=0.1)
    # Clipping only ever takes a gain away: 1.5 counts as 1.2 for A > 0, 0.5 as 0.8 for A < 0.
    policy = (-2.4 + 3.0 - 1.0 + 1.6 - 3.0) / 5
    assert got.policy.item() == pytest.approx(policy)
    assert got.kl.item() == pytest.approx(3)
    assert got.loss.item() == pytest.approx(policy + 0.3)
    assert got.clip_high.item() == pytest.approx(2 / 5) and got.clip_low.item() == pytest.approx(
        2 / 5
    )
    assert got.ratio_dev.item() == pytest.approx(0.5)
    assert got.approx_kl.item() == pytest.approx(
        (2 * math.log(1.5) ** 2 + 2 * math.log(2) ** 2) / 10
    )


def test_weight_scales_the_policy_term_only():
    log_ratio, advantage, kl = torch.zeros(3).double(), vector(1, 2, 3), vector(1, 1, 4)
    got = grpo(log_ratio, advantage, kl, clip_range=0.2, beta=0.5, weight=vector(2, 1, 0))
    assert got.policy.item() == pytest.approx(-4 / 3) and got.loss.item() == pytest.approx(
        -4 / 3 + 1
    )
    plain = grpo(log_ratio, advantage, kl, clip_range=0.2, beta=0.5)
    assert torch.equal(
        plain.loss,
        grpo(log_ratio, advantage, kl, clip_range=0.2, beta=0.5, weight=vector(1, 1, 1)).loss,
    )


def test_without_kl():
    got = grpo(vector(0.0, 0.1), vector(1, 1), None, clip_range=0.2, beta=0.5)
    assert got.kl.item() == 0 and torch.equal(got.loss, got.policy)


def test_clipped_samples_have_no_gradient():
    log_ratio = vector(1.5, 1.5, 0.5, 0.5, 1.1).log().requires_grad_()
    advantage = vector(2.0, -2.0, 2.0, -2.0, 3.0)
    grpo(log_ratio, advantage, None, clip_range=0.2, beta=0.0).loss.backward()
    torch.testing.assert_close(log_ratio.grad, vector(0, 3.0, -1.0, 0, -3.3) / 5)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_unchanged_policy_has_ratio_one_and_the_policy_gradient(kind):
    torch.manual_seed(0)
    x, x_next, v = torch.randn(3, 4, 5).double().unbind()
    v.requires_grad_()
    advantage = vector(1.0, -2.0, 0.5, 3.0)
    step = flow.transition(kind, x, v, SIGMAS, 2, noise_level=0.7)
    log_ratio = flow.log_ratio(kind, x_next, step, step.mean.detach())
    got = grpo(log_ratio, advantage, None, clip_range=1e-5, beta=0.0)
    assert got.ratio_dev == got.approx_kl == got.clip_high == got.clip_low == 0
    (gradient,) = torch.autograd.grad(got.loss, v, retain_graph=True)
    log_prob = flow.log_prob(kind, x_next, step)
    (expected,) = torch.autograd.grad((-advantage * log_prob).mean(), v)
    torch.testing.assert_close(gradient, expected)


def test_beta_brings_in_the_gradient_of_the_kl():
    torch.manual_seed(0)
    x, reference, v = torch.randn(3, 4, 5).double().unbind()
    v.requires_grad_()
    step = flow.transition("cps", x, v, SIGMAS, 2, noise_level=0.7)
    kl = flow.kl(step, reference)
    loss = grpo(torch.zeros(4).double(), torch.ones(4).double(), kl, clip_range=0.2, beta=0.04).loss
    (gradient,) = torch.autograd.grad(loss, v, retain_graph=True)
    torch.testing.assert_close(gradient, 0.04 * torch.autograd.grad(kl.mean(), v)[0])
    assert gradient.abs().min() > 0


def test_a_clip_range_of_1e_5_is_resolved_in_float32():
    log_ratio = torch.tensor([0.99e-5, 1.01e-5, -0.99e-5, -1.01e-5])
    got = grpo(log_ratio, torch.ones(4), None, clip_range=1e-5, beta=0.0)
    assert got.clip_high == got.clip_low == 0.25
    assert got.ratio_dev.item() == pytest.approx(1.01e-5, rel=1e-4)


def test_statistics_are_detached_scalars():
    log_ratio = vector(0.1, 0.2).requires_grad_()
    got = grpo(log_ratio, vector(1, 1), log_ratio**2, clip_range=0.2, beta=0.5)
    for field in fields(got):
        value = getattr(got, field.name)
        assert value.shape == () and value.requires_grad == (field.name == "loss")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"kl has shape \(2,\), log_ratio has \(3,\)"):
        grpo(torch.zeros(3), torch.zeros(3), torch.zeros(2), clip_range=0.2, beta=0.1)
    with pytest.raises(ValueError, match="advantage"):
        grpo(torch.zeros(3), torch.zeros(3, 1), None, clip_range=0.2, beta=0.1)
