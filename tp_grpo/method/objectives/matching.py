"""Matching on the states that sampling visited: towards the clean images of good actions.

On a shared state the clean images of the candidates are compared with the one that the state
predicts. On a trajectory each state has one clean image: the completion its step led to.
"""

import torch

from tp_grpo.method.points import Points, Predictions, mean, scale
from tp_grpo.types import Loss


def matching(points: Points, v: Predictions, *, trust: float, beta: float) -> Loss:
    """`mean(-(A - trust d) E)`, `E_i = -mean((x0hat - x0_i)^2) / w`, plus `beta kl`.

    One w for all targets of a point, the mean of their `points.scale`, and several targets' A less
    their mean (which clipping moves from 0): the descent direction of v at an unmoved policy is
    then exactly `-(2 sigma / w) sum_i A_i x0_i`, with no push along the prediction itself. d is
    `E - E_old`, detached, with the same w: the pull towards the old prediction that ELBO-PG has
    (arXiv 2602.04663). trust >= 0; beta >= 0, the weight of `mean((v - v_reference)^2)`.
    """
    assert v.old is not None
    error = points.image_error(v.policy)
    w = points.target_mean(scale(error))
    elbo = -mean(error**2) / w
    d = elbo.detach() + mean(points.image_error(v.old) ** 2) / w
    A = points.advantage
    if A.shape[1] > 1:
        A = A - points.target_mean(A)
    values = -(A - trust * d) * elbo
    policy = (values if points.weight is None else points.weight[:, None] * values).mean()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.moved(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach(), "moved": d.abs().mean()}
    return Loss(policy + beta * kl, stats)
