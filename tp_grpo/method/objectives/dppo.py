"""Flow-DPPO on the next state: unclipped ratios inside a trust region of the exact KL."""

import torch

from tp_grpo.method.objectives.surrogate import ratio_stats
from tp_grpo.method.points import Points, Predictions
from tp_grpo.types import Loss


def dppo(points: Points, v: Predictions, *, dppo_limit: float, beta: float) -> Loss:
    """`mean(-A rho) + beta mean(kl)`, without the entries that leave the trust region.

    An entry has no gradient where the step's KL from the old one, `D = mean(dmu^2) / 2 s^2`, is at
    least `dppo_limit` and the ratio has already moved the way A wants. dppo_limit > 0, published
    1e-5; beta >= 0. Source: Flow-DPPO, arXiv 2606.11025.
    """
    assert v.old is not None
    log_ratio = points.log_ratio(v.policy, v.old)
    step, old = points.transition(v.policy), points.transition(v.old).mean
    distance = ((step.mean - old) ** 2 / (2 * step.std**2)).flatten(1).mean(1, keepdim=True)
    outside = (distance.detach() >= dppo_limit) & (log_ratio.detach() * points.advantage > 0)
    surrogate = (-points.advantage * torch.exp(log_ratio)).masked_fill(outside, 0)
    policy = (surrogate if points.weight is None else points.weight[:, None] * surrogate).mean()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.kl(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach()}
    stats |= {"outside": outside.to(policy.dtype).mean()}
    stats |= {"approx_kl": ratio_stats(log_ratio, 1.0)["approx_kl"]}
    return Loss(policy + beta * kl, stats)
