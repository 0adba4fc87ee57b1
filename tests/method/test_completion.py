"""Cheaper completions: their order on a closed-form flow, what each computes, what each costs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from config import base
from tests.method.test_sampler import TARGET, B, Recorder, randn, schedule
from tp_grpo.method.completion import Branch, Completion, Solver, adams_bashforth, euler
from tp_grpo.method.sampler import staircase
from tp_grpo.plan import Plan, make_plan

# The sigma before the last, near 0, is what a completion can save.
SD3 = [1.0, 0.963, 0.924, 0.875, 0.818, 0.75, 0.667, 0.5625, 0.429, 0.009, 0.0]
FLUX = [1.0, 0.94, 0.86, 0.76, 0.61, 0.002, 0.0]
OPTIONS: dict[str, Any] = {"kind": "cps", "noise_level": 0.7, "max_rows": 10}
COMPLETIONS: list[dict[str, Any]] = [
    {"completion": "euler"},
    {"completion": "reuse"},
    {"completion": "multistep", "completion_steps": 4},
    {"completion": "multistep", "completion_steps": 3},
    {"completion": "multistep", "completion_steps": 1},
    {"completion": "strided", "completion_stride": 2},
    {"completion": "strided", "completion_stride": 4},
    {"completion": "tweedie"},
]


def plan(sigmas: list[float] | Tensor, window: range, **fields: object) -> Plan:
    config = base.get_config()
    config.sample.update(
        steps=len(sigmas) - 1, window_start=window.start, window_size=len(window), **fields
    )
    return make_plan(config, 1, branches=True).at([float(s) for s in sigmas])


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity E[eps - x_0 | x] of TARGET, exactly; x (..., 1)."""
    weight, mean, std = TARGET.T
    var = (1 - sigma) ** 2 * std**2 + sigma**2
    residual = x - (1 - sigma) * mean
    posterior = (weight.log() - var.log() / 2 - residual**2 / (2 * var)).softmax(-1)
    v = sigma / var * residual - (mean + (1 - sigma) * std**2 / var * residual)
    return (posterior * v).sum(-1, keepdim=True)


def complete(x: Tensor, sigmas: Tensor, solver: Solver) -> Tensor:
    branch = Branch(x, torch.arange(len(x)), 0, range(len(sigmas) - 1), solver)
    for sigma in sigmas[:-1]:
        branch.follow(mixture(branch.x, sigma), sigmas)
    return branch.x


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (adams_bashforth, 2)])
@pytest.mark.parametrize("bend", [1.0, 1.3])
def test_order_of_accuracy(solver: Solver, order: int, bend: float) -> None:
    """Halving the steps of a smooth flow divides the error by 2 to the order."""
    x = randn(64, 1)
    path = [0.9 * torch.linspace(1, 0, n + 1, dtype=torch.float64) ** bend for n in (64, 128, 2048)]
    coarse, fine, exact = (complete(x, sigmas, solver) for sigmas in path)
    ratio = (coarse - exact).norm() / (fine - exact).norm()
    assert 2**order * 0.8 < ratio < 2**order * 1.25


def test_a_linear_velocity_is_followed_exactly_after_the_first_step() -> None:
    """v = sigma, by hand: Euler from 1 to 0.5 takes 0.5 off, AB2 next 0.125, the integral."""
    sigmas = torch.tensor([1.0, 0.5, 0.0]).double()
    branch = Branch(torch.zeros(1, 1).double(), torch.arange(1), 0, [1], adams_bashforth)
    seen = []
    for sigma in sigmas[:2]:
        branch.follow(sigma.expand(1, 1), sigmas)
        seen.append(branch.x.item())
    assert seen == [-0.5, -0.625]


def by_hand(
    x: Tensor, v: Tensor, steps: list[int], at: int, sigmas: Tensor, rows: Tensor, order: int
) -> Tensor:
    """One completion written out: from sigma_at with v, then a velocity at each of `steps`."""
    velocity, before = Recorder(), None
    for here, there in zip([at, *steps], [*steps, len(sigmas) - 1], strict=True):
        v = v if here == at else velocity(x, here, rows)
        h = sigmas[there] - sigmas[here]
        if order == 2 and before is not None:
            last, v_last = before
            r = h / (sigmas[here] - sigmas[last])
            x, before = x + h * ((1 + r / 2) * v - r / 2 * v_last), (here, v)
        else:
            x, before = x + h * v, (here, v)
    return x


@pytest.mark.parametrize("fields", COMPLETIONS, ids=str)
@pytest.mark.parametrize("window", [range(8), range(2, 6)])
@pytest.mark.parametrize("chosen", [{}, {"branch_from": 2, "branch_every": 3}])
def test_every_completion_by_hand(fields: dict, window: range, chosen: dict) -> None:
    x, noise = randn(B, 2, 2), randn(B, len(window), 2, 2, seed=1)
    sigmas = torch.cat([schedule(8)[:-1], torch.tensor([0.01, 0.0]).double()])
    p = plan(sigmas, window, **fields, **chosen)
    velocity = Recorder()
    states, _, clean = staircase(velocity, x, sigmas, noise, completion=p.completion, **OPTIONS)
    assert clean.shape[1] == p.ladder == len(p.completion.states)
    assert sum(len(rows) for _, rows in velocity.calls) == B * p.nfe
    rows, order = torch.arange(B), 2 if fields["completion"] == "multistep" else 1
    for column, state in enumerate(p.completion.states):
        at, steps = window.start + state, list(p.completion.evaluated[state])
        v = Recorder()(states[:, state], at, rows)
        if at == window.stop:  # the trajectory's own end
            v, steps = (v, steps[1:]) if steps else (Recorder()(states[:, -2], at - 1, rows), steps)
        expected = by_hand(states[:, state], v, steps, at, sigmas, rows, order)
        torch.testing.assert_close(clean[:, column], expected, rtol=0, atol=1e-12)


def test_tweedie_is_the_predicted_clean_image() -> None:
    sigmas, x, noise = torch.tensor(SD3).double(), randn(B, 2, 2), randn(B, 9, 2, 2, seed=1)
    tweedie = plan(SD3, range(9), completion="tweedie").completion
    states, _, clean = staircase(Recorder(), x, sigmas, noise, completion=tweedie, **OPTIONS)
    for k in range(10):
        v = Recorder()(states[:, k], k, torch.arange(B))
        torch.testing.assert_close(clean[:, k], states[:, k] - sigmas[k] * v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "sd3", "flux"),
    [
        ({"completion": "euler"}, 55, 21),
        ({"completion": "reuse"}, 45, 15),
        ({"completion": "multistep", "completion_steps": 4}, 31, 15),
        ({"completion": "multistep", "completion_steps": 3}, 25, 13),
        ({"completion": "tweedie"}, 10, 6),
        ({"completion": "reuse", "branch_from": 5}, 9 + 3 + 2 + 1, None),
        ({"branch_from": 1, "branch_every": 3}, 9 + 8 + 5 + 2 + 1, 5 + 4 + 1 + 1),
    ],
)
def test_the_published_schedules_cost(fields: dict, sd3: int, flux: int | None) -> None:
    assert plan(SD3, range(9), **fields).nfe == sd3
    if flux is not None:
        assert plan(FLUX, range(5), **fields).nfe == flux


@pytest.mark.parametrize("window", [range(9), range(3, 7), range(1)])
def test_the_law_of_euler(window: range) -> None:
    T, K, s = 10, len(window), window.start
    assert plan(SD3, window).nfe == T + K * (T - s - 1) - K * (K - 1) // 2


def test_second_order_pays_on_the_mixture() -> None:
    """From a trajectory's states, 4 evaluations of AB2 come nearer to the ODE than 4 of Euler."""
    sigmas, window = torch.tensor([*SD3[:-2], 0.2, 0.0]).double(), range(9)
    x, noise = randn(200, 1), randn(200, 9, 1, seed=1)
    fields = {"completion": "multistep", "completion_steps": 4}
    multistep = plan(sigmas, window, **fields).completion

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        return mixture(x, sigmas[i])

    states, _, second = staircase(velocity, x, sigmas, noise, completion=multistep, **OPTIONS)
    errors = torch.zeros(2)
    for state in range(6):
        first = Branch(
            states[:, state], torch.arange(200), state, multistep.evaluated[state], euler
        )
        while first.at < len(sigmas) - 1:
            first.follow(mixture(first.x, sigmas[first.at]), sigmas)
        fine = sigmas[state] * torch.linspace(1, 0, 501, dtype=torch.float64)
        exact = complete(states[:, state], fine, euler)
        ends = (first.x, second[:, state])
        errors += torch.stack([(end - exact).abs().mean() for end in ends])
    assert errors[1] < 0.9 * errors[0], errors


def completed(sigmas: list[float] | Tensor, window: range, **fields: object) -> Tensor:
    """The clean images (200, J, 1) of that plan on the mixture."""
    schedule = torch.tensor([float(sigma) for sigma in sigmas]).double()
    x, noise, p = randn(200, 1), randn(200, len(window), 1, seed=1), plan(sigmas, window, **fields)

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        return mixture(x, schedule[i])

    return staircase(velocity, x, schedule, noise, completion=p.completion, **OPTIONS).clean


@pytest.mark.parametrize("sigmas", [SD3, FLUX], ids=["sd3", "flux"])
def test_a_last_velocity_used_again_is_as_good_as_a_new_one(sigmas: list[float]) -> None:
    """On the published schedules, of all states; relative to how much the images differ."""
    exact, again = (
        completed(sigmas, range(len(sigmas) - 2), completion=name) for name in ("euler", "reuse")
    )
    assert 0 < (again - exact).norm() / (exact - exact.mean()).norm() < 1e-2


@pytest.mark.parametrize(
    ("name", "field", "values", "order"),
    [
        ("strided", "completion_stride", (8, 4, 2), 1),
        ("multistep", "completion_steps", (8, 16, 32), 2),
    ],
)
def test_twice_the_evaluations_divide_the_error_by_2_to_the_order(
    name: str, field: str, values: tuple[int, ...], order: int
) -> None:
    path = 0.9 * torch.linspace(1, 0, 65, dtype=torch.float64)
    fine = 0.9 * torch.linspace(1, 0, 4097, dtype=torch.float64)
    exact = complete(randn(200, 1), fine, adams_bashforth)
    errors = [
        (completed(path, range(1), completion=name, **{field: n})[:, 0] - exact).abs().mean()
        for n in values
    ]
    ratios = [(coarse / fine).item() for coarse, fine in itertools.pairwise(errors)]
    assert all(2**order * 0.6 < ratio < 2**order * 1.6 for ratio in ratios), ratios


def test_a_common_latent_has_one_baseline() -> None:
    sigmas, completion = schedule(6), Completion(6, range(4))
    x, noise = randn(B, 2, 2)[[0, 1, 0]], randn(B, 4, 2, 2, seed=1)
    options = OPTIONS | {"completion": completion}

    class Shared(Recorder):
        """The same velocity for the rows of one origin, as one prompt has."""

        def __call__(self, x: Tensor, i: int, rows: Tensor) -> Tensor:
            self.calls.append((i, rows.tolist()))
            return torch.sin(x * (1 + i)) + x.roll(1, dims=-1) * (1 + rows % 2).reshape(-1, 1, 1)

    each, once = Shared(), Shared()
    apart = staircase(each, x, sigmas, noise, **options).clean
    origin = torch.tensor([0, 1, 0])
    together = staircase(once, x, sigmas, noise, origin=origin, **options).clean
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)
    assert torch.equal(together[0, 0], together[2, 0])
    assert not torch.equal(together[0, 1], together[2, 1])
    separate, shared = (sum(len(rows) for _, rows in v.calls) for v in (each, once))
    # One baseline of 6 steps, the first of which every sample evaluates anyway.
    assert separate - shared == 5


@pytest.mark.parametrize(
    "branches", [(3,), (-1,), (1, 0), (0, 0)], ids=["too late", "too early", "descending", "twice"]
)
def test_branches_that_cannot_be_completed_are_refused(branches: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending states from 0 to 2 are needed"):
        Completion(4, range(3), branches)


def test_an_unknown_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="'heun' is not one of euler, reuse, multistep"):
        Completion(4, range(3), name="heun")


@pytest.mark.parametrize("fields", COMPLETIONS, ids=str)
@pytest.mark.parametrize("window", [range(9), range(3, 7), range(1)])
def test_every_completion_evaluates_ascending_steps_behind_its_state(
    fields: dict, window: range
) -> None:
    for state, steps in plan(SD3, window, **fields).completion.evaluated.items():
        first = window.start + state + (state < len(window))
        assert list(steps) == sorted(set(steps) & set(range(first, 10)))
