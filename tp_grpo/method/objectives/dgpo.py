"""DGPO on noised clean images: a preference between the good and the bad of a whole group."""

import torch

from tp_grpo.method.points import Points, Predictions
from tp_grpo.types import Loss


def dgpo(
    points: Points, v: Predictions, *, dgpo_sharpness: float, dgpo_clip: float, beta: float
) -> Loss:
    """`mean(w A l)`, `l = mean((v - (eps - x_0))^2)`, `w = sigmoid(mean_group A b (l - l_ref))`.

    w, detached, falls as the group's order is learnt. The images of a group are noised by one eps
    at one sigma, and all of them are among the points. l has no gradient where the ratio
    `e^(l_old - l)` has left 1 +- dgpo_clip the way A wants. `beta mean((v - v_reference)^2)` is
    added. dgpo_sharpness: b > 0, published 10 to 100; dgpo_clip > 0, published 1e-5 to 1e-2;
    beta >= 0. Source: DGPO, arXiv 2510.08425.
    """
    assert v.old is not None
    assert v.reference is not None
    assert points.group is not None
    error, advantage = points.velocity_error(v.policy), points.advantage
    gain = advantage * dgpo_sharpness * (error.detach() - points.velocity_error(v.reference))
    same = (points.group[:, None] == points.group).to(gain)  # (R, R)
    known = torch.ones_like(gain) if points.lost is None else (~points.lost).to(gain)
    total, size = ((same * each.T).sum(1, keepdim=True) for each in (gain, known))
    weight = torch.sigmoid(total / size.clamp(min=1))
    deviation = torch.expm1(points.velocity_error(v.old) - error).detach()
    outside = (deviation.abs() > dgpo_clip) & (deviation * advantage > 0)
    policy = (weight * advantage * torch.where(outside, error.detach(), error)).mean()
    kl = points.moved(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach()}
    stats |= {"outside": outside.to(policy.dtype).mean(), "weight": weight.mean()}
    return Loss(policy + beta * kl, stats)
