"""AWM on noised clean images: flow matching weighted by the advantage, clipped like PPO."""

import torch

from tp_grpo.method.objectives.surrogate import clipped, ratio_stats
from tp_grpo.method.points import Points, Predictions
from tp_grpo.types import Loss

SMALL = 1e-10
LARGEST = 5.0  # advantages beyond it count as it, and as 1 in the loss


def awm(
    points: Points,
    v: Predictions,
    *,
    awm_power: float,
    awm_clip: float,
    awm_pull: float,
    beta: float,
) -> Loss:
    """PPO on `logp = -(sigma / p) ((l + 1e-10)^p - 1e-10^p)`, `l = mean((v - (eps - x_0))^2)`.

    `+ beta mean((v - v_reference)^2) + awm_pull mean((v - v_lagging)^2)`; advantages count as
    `clip(A, +-5) / 5`. awm_power: p > 0, published 0.25; awm_clip > 0, published 1; beta, awm_pull
    >= 0. Source: AWM, arXiv 2509.25050.
    """
    assert v.old is not None

    def log_prob(velocity: torch.Tensor) -> torch.Tensor:
        error = (points.velocity_error(velocity) + SMALL) ** awm_power - SMALL**awm_power
        return -points.sigma.reshape(-1, 1) / awm_power * error

    log_ratio = log_prob(v.policy) - log_prob(v.old)
    advantage = points.advantage.clamp(-LARGEST, LARGEST) / LARGEST
    policy = clipped(log_ratio, advantage, awm_clip).mean()
    kl = spread = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.moved(v.policy, v.reference).mean()
    if v.lagging is not None:
        spread = points.moved(v.policy, v.lagging).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach()} | ratio_stats(log_ratio, awm_clip)
    return Loss(policy + beta * kl + awm_pull * spread, stats)
