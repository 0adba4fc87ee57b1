"""GRPO on the next state: the clipped surrogate of its log-ratio, and the KL of the step."""

import torch

from tp_grpo.method.objectives.surrogate import clipped, ratio_stats
from tp_grpo.method.points import Points, Predictions
from tp_grpo.types import Loss


def grpo(points: Points, v: Predictions, *, clip_range: float, beta: float) -> Loss:
    """`mean(w max(-A rho, -A clip(rho, 1 - eps, 1 + eps))) + beta mean(kl)`, `rho = p / p_old`.

    w: the points' step weights, None for all ones. clip_range: `eps` > 0. beta >= 0; the KL to
    `v.reference` is left out where that is None. Source: Flow-GRPO, arXiv 2505.05470.
    """
    assert v.old is not None
    log_ratio = points.log_ratio(v.policy, v.old)
    surrogate = clipped(log_ratio, points.advantage, clip_range)
    policy = (surrogate if points.weight is None else points.weight[:, None] * surrogate).mean()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.kl(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach()} | ratio_stats(log_ratio, clip_range)
    return Loss(policy + beta * kl, stats)
