"""The objectives as docs and papers state them, one point and one target at a time, in float64.

A value keeps its graph, so that gradients can be compared too; what the formula detaches is
detached here by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tp_grpo.method.points import Points, Predictions, Schedule

LATENT, LEVEL = (2, 3), 0.7
SIGMAS = torch.linspace(1, 0, 7, dtype=torch.float64) ** 0.8


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """Points and predictions, and the noise of the clean images where that has one."""

    points: Points
    v: Predictions
    eps: Tensor | None = None

    def each(self) -> Iterator[tuple[int, int]]:
        """Every point and target."""
        R, C = self.points.advantage.shape
        return ((r, c) for r in range(R) for c in range(C))


def predictions(rows: int, moved: float) -> Predictions:
    """The policy is `moved` away from the old one, the others are further."""
    v, old, reference, lagging = (randn(rows, *LATENT, seed=seed) for seed in range(4))
    policy = (old + moved * v).requires_grad_()
    return Predictions(policy, old, old + 0.3 * reference, old + 0.2 * lagging)


def visited(kind: str, steps: int | list[int], targets: int, moved: float = 0.05) -> Case:
    """States of sampling: at one step (a trajectory's column), or at a step each."""
    R = 5 if isinstance(steps, int) else len(steps)
    v, x = predictions(R, moved), randn(R, *LATENT, seed=11)
    step = steps if isinstance(steps, int) else torch.tensor(steps)
    points = Points(
        x=x,
        sigma=SIGMAS[step],
        advantage=randn(R, targets, seed=12),
        weight=1 + 0.5 * randn(R, seed=13).tanh(),
        clean=randn(R, targets, *LATENT, seed=14),
        candidates=randn(R, targets, *LATENT, seed=15),
        step=step,
        schedule=Schedule(kind, SIGMAS, LEVEL),
    )
    return Case(points, v)


def noised(moved: float = 0.05) -> Case:
    """Six clean images of three prompts of 3, 2 and 1 images, each with its own sigma."""
    clean, eps = randn(6, *LATENT, seed=21), randn(6, *LATENT, seed=22)
    sigma = torch.tensor([1.0, 0.8, 0.6, 0.5, 0.3, 0.1], dtype=torch.float64)
    at = sigma[:, None, None]
    points = Points(
        x=(1 - at) * clean + at * eps,
        sigma=sigma,
        advantage=randn(6, 1, seed=23) * 3,
        clean=clean[:, None],
        group=torch.tensor([7, 2, 7, 2, 7, 9]),
    )
    return Case(points, predictions(6, moved), eps)


class Gaussian(NamedTuple):
    mean: Tensor
    std: float
    kl_scale: float
    dt: float


def gaussian(case: Case, r: int, v: Tensor) -> Gaussian:
    """The step that leaves point r with its row of v, as the table of DESIGN has it."""
    points = case.points
    assert points.schedule is not None
    i = points.step if isinstance(points.step, int) else int(points.step[r])  # type: ignore[index]
    sigma, after = SIGMAS[i].item(), SIGMAS[i + 1].item()
    x, u, dt = points.x[r], v[r], after - sigma
    if points.schedule.kind == "sde":
        g = LEVEL * math.sqrt(sigma / (1 - (SIGMAS[1].item() if sigma == 1 else sigma)))
        drift = u * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
        return Gaussian(x * (1 + g**2 * dt / (2 * sigma)) + drift, g * math.sqrt(-dt), g, dt)
    std = after * math.sin(LEVEL * math.pi / 2)
    noise = math.sqrt(after**2 - std**2) * (x + (1 - sigma) * u)
    return Gaussian((1 - after) * (x - sigma * u) + noise, std, std, dt)


def log_ratio(case: Case, r: int, c: int) -> Tensor:
    points, v = case.points, case.v
    assert points.schedule is not None
    assert points.candidates is not None
    assert v.old is not None
    new, old, x = gaussian(case, r, v.policy), gaussian(case, r, v.old), points.candidates[r, c]
    difference = ((x - old.mean) ** 2).mean() - ((x - new.mean) ** 2).mean()
    return difference / (2 * new.std**2) if points.schedule.kind == "sde" else difference


def step_kl(case: Case, r: int) -> Tensor:
    assert case.v.reference is not None
    new, reference = gaussian(case, r, case.v.policy), gaussian(case, r, case.v.reference)
    return ((new.mean - reference.mean) ** 2).mean() / (2 * new.kl_scale**2)


def ppo(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def average(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def moved(case: Case, other: Tensor | None) -> Tensor:
    """`|v - other|^2` over all points."""
    assert other is not None
    return average([((p - q) ** 2).mean() for p, q in zip(case.v.policy, other, strict=True)])


def grpo(case: Case, *, clip_range: float, beta: float) -> Tensor:
    A, w = case.points.advantage, case.points.weight
    assert w is not None
    terms = [w[r] * ppo(log_ratio(case, r, c).exp(), A[r, c], clip_range) for r, c in case.each()]
    return average(terms) + beta * average([step_kl(case, r) for r in range(len(A))])


def guard(case: Case, *, clip_range: float, beta: float) -> Tensor:
    A, terms = case.points.advantage, []
    for r, c in case.each():
        assert case.points.candidates is not None
        assert case.v.old is not None
        new, old = gaussian(case, r, case.v.policy), gaussian(case, r, case.v.old)
        x, s = case.points.candidates[r, c], new.std
        dlogp = (((x - old.mean) ** 2).mean() - ((x - new.mean) ** 2).mean()) / (2 * s**2)
        b = ((new.mean - old.mean) ** 2).mean() / (2 * s**2)
        terms.append(ppo(((dlogp + b) * s).exp(), A[r, c], clip_range) / -new.dt)
    return average(terms) + beta * average([step_kl(case, r) for r in range(len(A))])


def dppo(case: Case, *, dppo_limit: float, beta: float) -> Tensor:
    A, w, terms = case.points.advantage, case.points.weight, []
    assert w is not None
    for r, c in case.each():
        assert case.v.old is not None
        new, old = gaussian(case, r, case.v.policy), gaussian(case, r, case.v.old)
        distance = ((new.mean - old.mean) ** 2).mean() / (2 * new.std**2)
        ratio = log_ratio(case, r, c).exp()
        wanted = ratio > 1 if A[r, c] > 0 else ratio < 1
        outside = bool(distance >= dppo_limit and wanted)
        terms.append(0 * ratio if outside else -w[r] * A[r, c] * ratio)
    return average(terms) + beta * average([step_kl(case, r) for r in range(len(A))])


def error(case: Case, v: Tensor | None, r: int, c: int) -> Tensor:
    """`x0hat - x_0`."""
    assert v is not None
    assert case.points.clean is not None
    return case.points.x[r] - _sigma(case, r) * v[r] - case.points.clean[r, c]


def size(difference: Tensor) -> Tensor:
    """w of one image."""
    return max(difference.abs().mean(), torch.tensor(1e-5)).detach()


def matching(case: Case, *, trust: float, beta: float) -> Tensor:
    A, weight, terms = case.points.advantage, case.points.weight, []
    assert weight is not None
    for r, c in case.each():
        errors = [error(case, case.v.policy, r, i) for i in range(A.shape[1])]
        w = average([size(e) for e in errors])
        E = -(errors[c] ** 2).mean() / w
        E_old = -(error(case, case.v.old, r, c) ** 2).mean() / w
        centred = A[r, c] - (A[r].mean() if A.shape[1] > 1 else 0)
        terms.append(-weight[r] * (centred - trust * (E - E_old).detach()) * E)
    return average(terms) + beta * moved(case, case.v.reference)


def nft(case: Case, *, nft_mix: float, beta: float) -> Tensor:
    terms, old = [], case.v.old
    assert old is not None
    for r, c in case.each():
        good = max(-5.0, min(5.0, case.points.advantage[r, c].item())) / 10 + 0.5
        both = [old + sign * nft_mix * (case.v.policy - old) for sign in (1, -1)]
        plus, minus = (error(case, v, r, c) for v in both)
        plus, minus = ((e**2).mean() / size(e) for e in (plus, minus))
        terms.append(5 / nft_mix * (good * plus + (1 - good) * minus))
    return average(terms) + beta * moved(case, case.v.reference)


def elbo_pg(case: Case, *, elbo_form: str, beta: float) -> Tensor:
    terms = []
    for r, c in case.each():
        now, before = error(case, case.v.policy, r, c), error(case, case.v.old, r, c)
        E, E_old = (-(e**2).mean() / size(e) for e in (now, before))
        A, D = case.points.advantage[r, c], E - E_old
        d = D.detach()
        forms = {
            "ratio": -d.exp() * (A - d) * E,
            "no_ratio": -(A - d) * E,
            "par": d.exp() * (A - D) ** 2 / 2,
        }
        terms.append(forms[elbo_form])
    return average(terms) + beta * moved(case, case.v.reference)


def velocity_error(case: Case, v: Tensor | None, r: int) -> Tensor:
    """`|v - (eps - x_0)|^2`, by the noise that made the point."""
    assert v is not None
    assert case.eps is not None
    assert case.points.clean is not None
    return ((v[r] - (case.eps[r] - case.points.clean[r, 0])) ** 2).mean()


def awm(case: Case, *, awm_power: float, awm_clip: float, awm_pull: float, beta: float) -> Tensor:
    terms, p = [], awm_power
    for r in range(len(case.points.x)):
        logp, logp_old = (
            -_sigma(case, r) / p * ((velocity_error(case, v, r) + 1e-10) ** p - 1e-10**p)
            for v in (case.v.policy, case.v.old)
        )
        advantage = case.points.advantage[r, 0].clamp(-5, 5) / 5
        terms.append(ppo((logp - logp_old).exp(), advantage, awm_clip))
    pulls = beta * moved(case, case.v.reference) + awm_pull * moved(case, case.v.lagging)
    return average(terms) + pulls


def dgpo(case: Case, *, dgpo_sharpness: float, dgpo_clip: float, beta: float) -> Tensor:
    points, terms = case.points, []
    assert points.group is not None
    for r in range(len(points.x)):
        mates = [i for i in range(len(points.x)) if points.group[i] == points.group[r]]
        gains = [
            points.advantage[i, 0]
            * dgpo_sharpness
            * (velocity_error(case, case.v.policy, i) - velocity_error(case, case.v.reference, i))
            for i in mates
        ]
        w = torch.sigmoid(average(gains)).detach()
        A, now = points.advantage[r, 0], velocity_error(case, case.v.policy, r)
        ratio = (velocity_error(case, case.v.old, r) - now).exp()
        left = ratio > 1 + dgpo_clip if A > 0 else ratio < 1 - dgpo_clip
        terms.append(w * A * (now.detach() if left else now))
    return average(terms) + beta * moved(case, case.v.reference)


def _sigma(case: Case, r: int) -> Tensor:
    sigma = torch.as_tensor(case.points.sigma)
    return sigma[r] if sigma.ndim else sigma


LOOPS: dict[str, Callable[..., Tensor]] = {
    "grpo": grpo,
    "guard": guard,
    "dppo": dppo,
    "matching": matching,
    "nft": nft,
    "elbo_pg": elbo_pg,
    "awm": awm,
    "dgpo": dgpo,
}
