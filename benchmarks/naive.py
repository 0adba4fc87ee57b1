"""The yardstick: TP-GRPO as its paper describes it (arXiv 2602.06422), without anything of tp_grpo.

`sample` draws the stochastic trajectory, then completes each of its states by the ODE, one after
the other. `update` makes one backward pass per step. Legend: `B` samples, `K` SDE steps, `T`
denoising steps, `*L` latent dims. The velocity is a callable of x (B, *L) and the step; sigmas
(T+1,) fall from 1 to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Sampled:
    """K stochastic steps, and the image that each of the K + 1 states leads to."""

    states: list[Tensor]  # K + 1 of (B, *L)
    log_probs: list[Tensor]  # K of (B,)
    clean: list[Tensor]  # K + 1 of (B, *L), by k SDE steps and then the ODE


def transition(
    x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: float
) -> tuple[Tensor, Tensor]:
    """Mean and std of the coefficients-preserving step (Flow-CPS, arXiv 2509.05952)."""
    std = sigma_next * math.sin(noise_level * math.pi / 2)
    clean, predicted_noise = x - sigma * v, x + (1 - sigma) * v
    mean = (1 - sigma_next) * clean + (sigma_next**2 - std**2).sqrt() * predicted_noise
    return mean, std


def log_prob(x_next: Tensor, mean: Tensor) -> Tensor:
    """Log-probability (B,), without constants and variance, as Flow-CPS defines it."""
    return -((x_next - mean) ** 2).flatten(1).mean(1)


def follow(velocity: Velocity, x: Tensor, sigmas: Tensor, start: int) -> Tensor:
    """Follow the ODE from x at `sigmas[start]` to the end by Euler's steps."""
    for i in range(start, len(sigmas) - 1):
        x = x + velocity(x, i) * (sigmas[i + 1] - sigmas[i])
    return x


@torch.no_grad()
def sample(
    velocity: Velocity, x: Tensor, sigmas: Tensor, noise: Tensor, *, noise_level: float
) -> Sampled:
    """K SDE steps from x (B, *L) with noise (B, K, *L), then all K + 1 completions."""
    states, log_probs = [x], []
    for k in range(noise.shape[1]):
        mean, std = transition(x, velocity(x, k), sigmas[k], sigmas[k + 1], noise_level)
        x = mean + std * noise[:, k]
        states.append(x)
        log_probs.append(log_prob(x, mean))
    end = follow(velocity, x, sigmas, len(states) - 1)
    branches = [follow(velocity, states[k], sigmas, k) for k in range(1, len(states) - 1)]
    baseline = follow(velocity, states[0], sigmas, 0)
    return Sampled(states, log_probs, [baseline, *branches, end])


def update(
    velocity: Velocity,
    reference: Velocity,
    sampled: Sampled,
    advantages: Tensor,
    sigmas: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    noise_level: float,
    clip_range: float,
    beta: float,
    max_grad_norm: float,
) -> float:
    """One step on the clipped surrogate and the KL; advantages (B, K) -> gradient norm."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    steps = len(sampled.log_probs)
    for k in range(steps):
        x, x_next = sampled.states[k], sampled.states[k + 1]
        mean, std = transition(x, velocity(x, k), sigmas[k], sigmas[k + 1], noise_level)
        with torch.no_grad():
            frozen, _ = transition(x, reference(x, k), sigmas[k], sigmas[k + 1], noise_level)
        ratio = (log_prob(x_next, mean) - sampled.log_probs[k]).exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy = torch.maximum(-advantages[:, k] * ratio, -advantages[:, k] * clipped).mean()
        divergence = ((mean - frozen) ** 2 / (2 * std**2)).mean()
        ((policy + beta * divergence) / steps).backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(norm)
