"""GRPO-Guard on the next state: ratios of mean 1 and equal spread at every step."""

import torch

from tp_grpo.method.objectives.surrogate import clipped, ratio_stats
from tp_grpo.method.points import Points, Predictions
from tp_grpo.types import Loss


def guard(points: Points, v: Predictions, *, clip_range: float, beta: float) -> Loss:
    """`mean(max(-A rho, -A clip(rho)) / -dt) + beta mean(kl)`, `rho = e^((dlogp + b) s)`.

    `b = mean(dmu^2) / 2 s^2` makes the mean of the log-ratio 0 and s, the step's std, takes out how
    it grows as s falls: `(dlogp + b) s = mean(dmu (x' - mu_old)) / s`, where dlogp is the
    Gaussian's for either kind of step. Dividing by -dt evens out the gradients of the steps.
    clip_range > 0, published 2e-6; beta >= 0. Source: GRPO-Guard, arXiv 2510.22319.
    """
    assert v.old is not None
    assert points.candidates is not None
    step, old = points.transition(v.policy), points.transition(v.old).mean
    product = (step.mean - old)[:, None] * (points.candidates - old[:, None]) / step.std[..., None]
    log_ratio = product.flatten(2).mean(2)
    if points.lost is not None:
        log_ratio = log_ratio.masked_fill(points.lost, 0)
    surrogate = clipped(log_ratio, points.advantage, clip_range)
    policy = (surrogate / -points.dt.reshape(-1, 1)).mean()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.kl(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach()} | ratio_stats(log_ratio, clip_range)
    return Loss(policy + beta * kl, stats)
