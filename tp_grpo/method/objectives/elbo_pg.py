"""ELBO-PG on noised clean images: the evidence bound stands in for the log-likelihood."""

import torch

from tp_grpo.method.points import Points, Predictions, mean, scale
from tp_grpo.types import Loss

FORMS = ("ratio", "no_ratio", "par")


def elbo_pg(points: Points, v: Predictions, *, elbo_form: str, beta: float) -> Loss:
    """`E = -mean((x0hat - x_0)^2) / w` rises with A, within reach of the old policy's `E_old`.

    With `D = E - E_old` and detached d = D: elbo_form `ratio` (PEPG) is `-e^d (A - d) E`,
    `no_ratio` `-(A - d) E`, `par` `e^d (A - D)^2 / 2`. Each draws D towards A, which is the trust
    region. w is detached (`points.scale`); `beta mean((v - v_reference)^2)` is added, published
    1e-4, and `A = 0.1 (R - mean)`. Raises ValueError for another form. Source: arXiv 2602.04663.
    """
    if elbo_form not in FORMS:
        raise ValueError(f"elbo_form {elbo_form!r} is not one of {', '.join(FORMS)}")
    assert v.old is not None
    error, error_old = points.image_error(v.policy), points.image_error(v.old)
    elbo = -mean(error**2) / scale(error)
    moved = elbo + mean(error_old**2) / scale(error_old)
    d, advantage = moved.detach(), points.advantage
    if elbo_form == "par":
        values = torch.exp(d) * (advantage - moved) ** 2 / 2
    else:
        values = -(advantage - d) * elbo
        if elbo_form == "ratio":
            values = torch.exp(d) * values
    policy = values.mean()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.moved(v.policy, v.reference).mean()
    stats = {"policy": policy.detach(), "kl": kl.detach(), "moved": d.abs().mean()}
    return Loss(policy + beta * kl, stats)
