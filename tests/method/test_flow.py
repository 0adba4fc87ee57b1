"""Denoising steps against golden values, closed-form fields and autograd."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.types import Step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())["sde"]
KINDS = ["sde", "cps"]
LINEAR = torch.linspace(1, 0, 11, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['model']}-{c['sde_type']}-{c['noise_level']}-{c['step']}"
)
def test_golden(case):
    x, v, noise, x_next = (torch.tensor(case[k])[None] for k in ("x", "v", "noise", "x_next"))
    kind, sigmas = case["sde_type"], torch.tensor(case["sigmas"])
    step = flow.transition(kind, x, v, sigmas, case["step"], noise_level=case["noise_level"])
    close = {"rtol": 1e-5, "atol": 2e-6}
    assert x.dtype == step.mean.dtype == torch.float32
    torch.testing.assert_close(step.mean, torch.tensor(case["mean"])[None], **close)
    torch.testing.assert_close(step.std, torch.tensor(case["noise_scale"]), **close)
    torch.testing.assert_close(step.mean + step.std * noise, x_next, **close)
    torch.testing.assert_close(
        flow.log_prob(kind, x_next, step), torch.tensor([case["log_prob"]]), **close
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", range(10))
def test_without_noise_a_step_is_the_ode(kind, i):
    x, v = randn(3, 4), randn(3, 4, seed=1)
    step = flow.transition(kind, x, v, LINEAR, i, noise_level=0.0)
    torch.testing.assert_close(
        step.mean, flow.ode_step(x, v, LINEAR[i], LINEAR[i + 1]), rtol=0, atol=1e-14
    )
    assert step.std == 0


def test_ode_step_is_exact_along_a_straight_path():
    clean, eps = randn(3, 4), randn(3, 4, seed=1)
    x = 0.2 * clean + 0.8 * eps
    torch.testing.assert_close(
        flow.ode_step(x, eps - clean, 0.8, 0.3), 0.7 * clean + 0.3 * eps, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_a_sample_equals_one_sigma_at_a_time(kind):
    x, v = randn(3, 2, 2), randn(3, 2, 2, seed=1)
    sigma, sigma_next = (
        torch.tensor([1.0, 0.7, 0.4]).double(),
        torch.tensor([0.9, 0.5, 0.3]).double(),
    )

    def step(x, v, sigma, sigma_next) -> Step:
        if kind == "cps":
            return flow.cps_step(x, v, sigma, sigma_next, noise_level=0.7)
        return flow.sde_step(x, v, sigma, sigma_next, noise_level=0.7, sigma_cap=0.9)

    whole, x_next = step(x, v, sigma, sigma_next), randn(3, 2, 2, seed=2)
    assert whole.std.shape == whole.kl_scale.shape == (3, 1, 1)
    for b in range(3):
        alone = step(x[b : b + 1], v[b : b + 1], sigma[b].item(), sigma_next[b].item())
        torch.testing.assert_close(whole.mean[b : b + 1], alone.mean, rtol=1e-14, atol=0)
        for judge in (
            lambda s, rows: flow.log_prob(kind, x_next[rows], s),
            lambda s, rows: flow.kl(s, x_next[rows]),
        ):
            torch.testing.assert_close(
                judge(whole, slice(None))[b : b + 1], judge(alone, slice(b, b + 1))
            )


def gaussian_error(kind: str, steps: int, noise_level: float) -> tuple[float, float]:
    """Errors of mean and (relative) variance for N(0.7, 0.5^2), whose velocity is linear.

    A step is then affine in x, so the law of the samples is followed exactly: no sampling noise.
    """
    target_mean, target_var = 0.7, 0.25
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, var = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    for i, sigma in enumerate(sigmas[:-1]):
        x = torch.tensor([[0.0], [1.0]]).double()
        residual = (x - (1 - sigma) * target_mean) / ((1 - sigma) ** 2 * target_var + sigma**2)
        v = sigma * residual - (target_mean + (1 - sigma) * target_var * residual)
        step = flow.transition(kind, x, v, sigmas, i, noise_level=noise_level)
        offset, slope = step.mean[0, 0], step.mean[1, 0] - step.mean[0, 0]
        mean, var = slope * mean + offset, slope**2 * var + step.std**2
    return abs(mean.item() - target_mean), abs(var.item() / target_var - 1)


@pytest.mark.parametrize(
    ("kind", "noise_level"),
    [("sde", lambda T: 0.0), ("sde", lambda T: 1.0), ("cps", lambda T: 0.7 / math.sqrt(T))],
    ids=["ode", "sde", "cps"],
)
def test_many_steps_reach_a_gaussian(kind, noise_level):
    errors = {T: gaussian_error(kind, T, noise_level(T)) for T in (10, 40, 160, 640)}
    assert all(mean < 1e-12 for mean, _ in errors.values())
    first_order = {T: T * variance for T, (_, variance) in errors.items()}
    assert first_order[10] > 0.2
    assert all(error < 1.5 * first_order[10] for error in first_order.values())


def test_sde_reaches_a_gaussian_slowly_at_the_published_noise_level():
    # Near sigma = 1 a step has variance a^2 / k, k = 1, 2, .. at any T: it fades as T^(-a^2).
    assert gaussian_error("sde", 10, 0.7)[1] > 0.05
    assert gaussian_error("sde", 3200, 0.7)[1] < 0.0025


def test_cps_is_exact_for_a_point_and_too_narrow_for_a_gaussian():
    point = torch.tensor([[2.0]]).double()
    sigma, sigma_next, eps = 0.8, 0.5, randn(1, 1)
    x = (1 - sigma) * point + sigma * eps
    step = flow.cps_step(x, eps - point, sigma, sigma_next, noise_level=0.7)
    cos = math.cos(0.35 * math.pi)
    torch.testing.assert_close(step.mean, (1 - sigma_next) * point + sigma_next * cos * eps)
    torch.testing.assert_close(
        step.std**2 + (sigma_next * cos) ** 2, torch.tensor(sigma_next**2).double()
    )
    narrowing = 1 - (1 + cos) / 2
    assert gaussian_error("cps", 100, 0.7)[1] > narrowing
    assert gaussian_error("cps", 6400, 0.7)[1] == pytest.approx(narrowing, rel=0.02)


def test_log_prob_is_the_gaussian_density_for_sde_and_a_square_for_cps():
    mean, x_next, std = randn(2, 3, 2), randn(2, 3, 2, seed=1), torch.tensor(0.3).double()
    step = Step(mean, std, std)
    density = torch.distributions.Normal(mean, std).log_prob(x_next).mean((1, 2))
    torch.testing.assert_close(flow.log_prob("sde", x_next, step), density)
    torch.testing.assert_close(
        flow.log_prob("cps", x_next, step), -((x_next - mean) ** 2).mean((1, 2))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_log_ratio_is_the_difference_of_log_probs(kind):
    x, v, x_next = randn(4, 3, 2), randn(4, 3, 2, seed=1), randn(4, 3, 2, seed=2)
    new, old = (flow.transition(kind, x, u, LINEAR, 3, noise_level=0.7) for u in (v + 0.1, v))
    difference = flow.log_prob(kind, x_next, new) - flow.log_prob(kind, x_next, old)
    torch.testing.assert_close(
        flow.log_ratio(kind, x_next, new, old.mean), difference, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("kind", KINDS)
def test_log_ratio_keeps_what_float32_log_probs_lose(kind):
    x, v, noise = randn(4, 4096), randn(4, 4096, seed=1), randn(4, 4096, seed=2)
    old = flow.transition(kind, x, v, LINEAR, 3, noise_level=0.7)
    new = flow.transition(kind, x, v + 1e-5 * noise, LINEAR, 3, noise_level=0.7)
    x_next = old.mean + old.std * noise
    exact = flow.log_ratio(kind, x_next, new, old.mean)
    new32, old32 = (Step(s.mean.float(), s.std.float(), s.kl_scale.float()) for s in (new, old))
    exact32 = flow.log_ratio(kind, x_next.float(), new32, old32.mean).double()
    naive = (
        flow.log_prob(kind, x_next.float(), new32).double()
        - flow.log_prob(kind, x_next.float(), old32).double()
    )
    assert (exact32 - exact).abs().max() < 0.01 * exact.abs().min()
    assert (naive - exact).abs().max() > 3 * (exact32 - exact).abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unchanged_policy_has_log_ratio_zero_and_the_gradient_of_log_prob(kind, dtype):
    x, x_next = randn(4, 5).to(dtype), randn(4, 5, seed=2).to(dtype)
    v = randn(4, 5, seed=1).to(dtype).requires_grad_()
    step = flow.transition(kind, x, v, LINEAR, 0, noise_level=0.7)
    ratio = flow.log_ratio(kind, x_next, step, step.mean.detach())
    assert torch.equal(ratio, torch.zeros(4, dtype=dtype))
    (got,) = torch.autograd.grad(ratio.sum(), v, retain_graph=True)
    (expected,) = torch.autograd.grad(flow.log_prob(kind, x_next, step).sum(), v)
    torch.testing.assert_close(got, expected)
    assert got.abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_kl_closed_form_scale_and_gradient(kind):
    x, i = randn(4, 5), 3
    v = randn(4, 5, seed=1).requires_grad_()
    step = flow.transition(kind, x, v, LINEAR, i, noise_level=0.7)
    reference = flow.transition(kind, x, v.detach() + 0.1, LINEAR, i, noise_level=0.7)
    gaussians = [torch.distributions.Normal(s.mean, s.std) for s in (step, reference)]
    true_kl = torch.distributions.kl_divergence(*gaussians).mean(1)
    scale = LINEAR[i] - LINEAR[i + 1] if kind == "sde" else 1
    torch.testing.assert_close(flow.kl(step, reference.mean), scale * true_kl)
    (gradient,) = torch.autograd.grad(flow.kl(step, reference.mean).sum(), v, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(scale * true_kl.sum(), v)[0])
    assert gradient.abs().min() > 0
    assert torch.equal(flow.kl(step, step.mean.detach()), torch.zeros(4).double())


def test_step_weights():
    sigmas = torch.cat([torch.linspace(1, 0.001, 10), torch.zeros(1)]).double()
    weights = flow.step_weights("sde", sigmas, range(5), noise_level=0.7)
    expected = torch.tensor([1.70, 1.29, 0.85, 0.64, 0.51]).double()
    torch.testing.assert_close(weights, expected, rtol=0, atol=0.006)
    for kind in KINDS:
        weights = flow.step_weights(kind, sigmas, range(2, 9), noise_level=0.7)
        assert weights.shape == (7,) and weights.mean().item() == pytest.approx(1)


def test_step_weights_level_the_gradient_of_the_log_density():
    steps, noise, force = range(1, 6), randn(1, 1), []
    for i in steps:
        v = torch.zeros(1, 1).double().requires_grad_()
        step = flow.transition("sde", torch.zeros(1, 1).double(), v, LINEAR, i, noise_level=0.7)
        x_next = (step.mean + step.std * noise).detach()
        force.append(torch.autograd.grad(flow.log_prob("sde", x_next, step).sum(), v)[0].abs())
    leveled = torch.cat(force)[:, 0] * flow.step_weights("sde", LINEAR, steps, noise_level=0.7)
    torch.testing.assert_close(leveled, leveled.mean().expand(5))


def test_unknown_kind_names_the_two():
    step = Step(*[torch.ones(1, 1)] * 3)
    calls = [
        lambda: flow.transition("ode", step.mean, step.mean, LINEAR, 0, noise_level=0.7),
        lambda: flow.log_prob("ode", step.mean, step),
        lambda: flow.log_ratio("ode", step.mean, step, step.mean),
        lambda: flow.step_weights("ode", LINEAR, range(3), noise_level=0.7),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'ode'.*'sde' or 'cps'"):
            call()


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_a_step_a_sample_equals_one_step_at_a_time(kind):
    sigmas = torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]).double()
    x, v = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    steps = [2, 0, 1]
    together = flow.transition(kind, x, v, sigmas, torch.tensor(steps), noise_level=0.7)
    for row, step in enumerate(steps):
        alone = flow.transition(kind, x, v, sigmas, step, noise_level=0.7)
        for got, expected in (
            (together.mean[row], alone.mean[row]),
            (together.std[row].squeeze(), alone.std),
        ):
            torch.testing.assert_close(got, expected)
