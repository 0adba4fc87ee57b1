"""The staircase against separate reruns, exact call counts and known laws."""

import math

import pytest
import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.completion import Completion
from tp_grpo.method.sampler import ode, staircase

B, LATENT = 3, (2, 2)
TARGET = torch.tensor(
    [[0.3, -1.5, 0.5], [0.7, 1.0, 0.4]]
).double()  # of each mode: weight, mean, std


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def schedule(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 0.8


def alone(window: range, steps: int) -> Completion:
    """No branches: only the trajectory's own end."""
    return Completion(steps, window, branches=())


class Recorder:
    """A velocity that differs by sample and by step, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[int]]] = []

    def __call__(self, x: Tensor, i: int, rows: Tensor) -> Tensor:
        self.calls.append((i, rows.tolist()))
        assert len(x) == len(rows) and rows.dtype == torch.int64
        return torch.sin(x * (1 + i)) + x.roll(1, dims=-1) * (1 + rows.to(x)).reshape(-1, 1, 1)


def rerun(k: int, x: Tensor, sigmas: Tensor, noise: Tensor, window: range, kind: str) -> Tensor:
    """The clean latents of k SDE steps and else the ODE, from the start and on their own."""
    velocity, rows = Recorder(), torch.arange(B)
    for i in range(len(sigmas) - 1):
        v = velocity(x, i, rows)
        if i in window[:k]:
            step = flow.transition(kind, x, v, sigmas, i, noise_level=0.7)
            x = step.mean + step.std * noise[:, i - window.start]
        else:
            x = flow.ode_step(x, v, sigmas[i], sigmas[i + 1])
    return x


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("max_rows", [1, 4, 1000])
@pytest.mark.parametrize(
    "window", [range(5), range(1), range(2, 5), range(3, 4), range(4), range(1, 4)]
)
def test_staircase_equals_separate_reruns(window, max_rows, kind):
    x, sigmas, noise = randn(B, *LATENT), schedule(6), randn(B, len(window), *LATENT, seed=1)
    options = {"kind": kind, "noise_level": 0.7, "max_rows": max_rows}
    sampled = staircase(Recorder(), x, sigmas, noise, completion=Completion(6, window), **options)
    clean = sampled.clean
    assert clean.shape == (B, len(window) + 1, *LATENT)
    for k in range(len(window) + 1):
        torch.testing.assert_close(
            clean[:, k], rerun(k, x, sigmas, noise, window, kind), rtol=0, atol=1e-12
        )
    torch.testing.assert_close(clean[:, 0], ode(Recorder(), x, sigmas), rtol=0, atol=1e-12)
    end = ode(Recorder(), sampled.states[:, -1], sigmas, start=window.stop)
    torch.testing.assert_close(clean[:, -1], end, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "window"), [(10, range(9)), (6, range(5)), (10, range(3, 7)), (4, range(3, 4))]
)
@pytest.mark.parametrize("max_rows", [1, 5, 1000])
def test_calls(steps, window, max_rows):
    velocity, K = Recorder(), len(window)
    noise = randn(B, K, *LATENT, seed=1)
    options = {"kind": "cps", "noise_level": 0.7, "max_rows": max_rows}
    x, sigmas = randn(B, *LATENT), schedule(steps)
    staircase(velocity, x, sigmas, noise, completion=Completion(steps, window), **options)

    nfe = steps + K * (steps - window.start - 1) - K * (K - 1) // 2
    assert sum(len(rows) for _, rows in velocity.calls) == B * nfe
    assert nfe == {(10, 9): 55, (6, 5): 21}.get((steps, K), nfe)
    branch_calls = list(velocity.calls)
    for i in range(steps):
        branch_calls.remove((i, [0, 1, 2]))
    assert all(len(rows) <= max_rows for _, rows in branch_calls)
    expected = sum(
        math.ceil(B * min(i - window.start, K) / max_rows) for i in range(window.start + 1, steps)
    )
    if window.stop == steps - 1 or max_rows > B * K:
        assert len(branch_calls) == expected

    velocity.calls.clear()
    sampled = staircase(velocity, x, sigmas, noise, completion=alone(window, steps), **options)
    assert velocity.calls == [(i, [0, 1, 2]) for i in range(steps)]
    assert sampled.clean.shape == (B, 1, *LATENT)


def test_branches_do_not_touch_the_trajectory():
    x, sigmas, noise = randn(B, *LATENT), schedule(6), randn(B, 4, *LATENT, seed=1)
    options = {"kind": "sde", "noise_level": 0.7, "max_rows": 2}
    branched, without = (
        staircase(Recorder(), x, sigmas, noise, completion=completion, **options)
        for completion in (Completion(6, range(1, 5)), alone(range(1, 5), 6))
    )
    assert torch.equal(branched.states, without.states)
    assert torch.equal(branched.velocities, without.velocities)
    assert torch.equal(branched.clean[:, -1:], without.clean)


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("velocity_dtype", [torch.float32, torch.bfloat16])
def test_trajectory_is_judged_as_stored(kind, velocity_dtype):
    """Evaluating the unchanged policy again gives its velocities bit for bit, in float32."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4).to(velocity_dtype)

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        return net(x.flatten(1).to(velocity_dtype)).unflatten(1, LATENT) * (1 + i)

    x, noise = (
        randn(B, *LATENT, dtype=torch.float32),
        randn(B, 4, *LATENT, seed=1, dtype=torch.float32),
    )
    sigmas, completion = schedule(6), Completion(6, range(1, 5))
    options = {"kind": kind, "noise_level": 0.7, "max_rows": 4}
    states, velocities, clean = staircase(
        velocity, x, sigmas, noise, completion=completion, **options
    )
    assert states.shape == (B, 5, *LATENT)
    assert velocities.shape == (B, 4, *LATENT)
    assert {states.dtype, velocities.dtype, clean.dtype} == {torch.float32}
    assert not clean.requires_grad
    assert not velocities.requires_grad
    for k, i in enumerate(completion.window):
        v = velocity(states[:, k], i, torch.arange(B)).float()
        step = flow.transition(kind, states[:, k], v, sigmas.float(), i, noise_level=0.7)
        assert torch.equal(v, velocities[:, k])
        torch.testing.assert_close(states[:, k + 1], step.mean + step.std * noise[:, k])


def test_inputs_are_checked():
    def call(noise_steps: int = 3, max_rows: int = 4, kind: str = "cps", steps: int = 4) -> None:
        noise, completion = randn(B, noise_steps, *LATENT), Completion(steps, range(3))
        options = {"kind": kind, "noise_level": 0.7, "max_rows": max_rows}
        x = randn(B, *LATENT)
        staircase(Recorder(), x, schedule(4), noise, completion=completion, **options)

    for window in (range(2, 5), range(2, 2), range(0, 4, 2), range(-1, 2)):
        with pytest.raises(ValueError, match="window"):
            Completion(4, window)
    with pytest.raises(ValueError, match="sigmas have 4 steps, the completion 5"):
        call(steps=5)
    with pytest.raises(ValueError, match=r"noise has shape \(3, 2, 2, 2\).*\(3, 3, 2, 2\)"):
        call(noise_steps=2)
    with pytest.raises(ValueError, match="max_rows = 0"):
        call(max_rows=0)
    with pytest.raises(ValueError, match="'ode'"):
        call(kind="ode")


def mixture_samples(kind: str, steps: int, count: int = 20_000) -> Tensor:
    """Samples (count,) of TARGET by its exact velocity, E[eps - x_0 | x]."""
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    weight, mean, std = TARGET.T

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        sigma = sigmas[i]
        var = (1 - sigma) ** 2 * std**2 + sigma**2
        residual = x - (1 - sigma) * mean
        posterior = (weight.log() - var.log() / 2 - residual**2 / (2 * var)).softmax(1)
        v = sigma / var * residual - (mean + (1 - sigma) * std**2 / var * residual)
        return (posterior * v).sum(1, keepdim=True)

    x = randn(count, 1, seed=steps)
    if kind == "ode":
        return ode(velocity, x, sigmas)[:, 0]
    noise, noise_level = (
        randn(count, steps, 1, seed=steps + 1),
        1.0 if kind == "sde" else 1 / math.sqrt(steps),
    )
    window = range(steps)
    options = {"kind": kind, "noise_level": noise_level, "max_rows": 1}
    sampled = staircase(velocity, x, sigmas, noise, completion=alone(window, steps), **options)
    return sampled.clean[:, 0, 0]


def mixture_errors(samples: Tensor) -> Tensor:
    """Errors of mean, variance and each mode's share, in standard errors of the sample."""
    weight, mean, std = TARGET.T
    target_mean = (weight * mean).sum()
    target_var = (weight * (std**2 + mean**2)).sum() - target_mean**2
    cut = -0.4
    share = (weight * torch.distributions.Normal(mean, std).cdf(torch.tensor(cut).double())).sum()
    columns = [
        samples - target_mean,
        (samples - target_mean) ** 2 - target_var,
        (samples < cut).double() - share,
    ]
    return torch.stack([c.mean().abs() / (c.std() / math.sqrt(len(c))) for c in columns])


@pytest.mark.parametrize("kind", ["ode", "sde", "cps"])
def test_many_steps_reach_a_mixture(kind):
    coarse, fine = (mixture_errors(mixture_samples(kind, steps)) for steps in (5, 200))
    assert fine.max() < 4
    assert coarse.max() > 8
