"""The clipped surrogate of GRPO with a KL term, over M (sample, step) pairs."""

import torch
from torch import Tensor

from tp_grpo.types import LossStats


def grpo(
    log_ratio: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    *,
    clip_range: float,
    beta: float,
    weight: Tensor | None = None,
) -> LossStats:
    """`mean(w max(-A rho, -A clip(rho, 1 - eps, 1 + eps))) + beta mean(kl)`, `rho = e^log_ratio`.

    log_ratio (M,): new minus old log-prob, in nats. advantage (M,): no unit.
    kl (M,) >= 0: from the frozen model; None leaves the term out.
    clip_range: `eps` > 0. beta >= 0. weight (M,) of mean 1: None for all ones.

    The statistic approx_kl is `mean(log_ratio^2 / 2)`, how far the policy has moved from the one
    that sampled. Raises ValueError when the shapes do not match. Source: the objective of
    Flow-GRPO, arXiv 2505.05470.
    """
    for name, value in {"advantage": advantage, "kl": kl, "weight": weight}.items():
        if value is not None and value.shape != log_ratio.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, log_ratio has {tuple(log_ratio.shape)}"
            )
    ratio = torch.exp(log_ratio)
    surrogate = torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    )
    policy = (surrogate if weight is None else weight * surrogate).mean()
    distance = torch.zeros_like(policy) if kl is None else kl.mean()
    # In fp32 1 + 1e-5 is good to 1 % only; expm1 keeps deviations as small as the clip range.
    deviation = torch.expm1(log_ratio.detach())
    return LossStats(
        loss=policy + beta * distance,
        policy=policy.detach(),
        kl=distance.detach(),
        approx_kl=(0.5 * log_ratio.detach() ** 2).mean(),
        clip_high=(deviation > clip_range).to(ratio.dtype).mean(),
        clip_low=(deviation < -clip_range).to(ratio.dtype).mean(),
        ratio_dev=deviation.abs().max(),
    )
