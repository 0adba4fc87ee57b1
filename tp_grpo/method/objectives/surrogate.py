"""The clipped surrogate of PPO, which several objectives share."""

import torch
from torch import Tensor


def clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """`max(-A rho, -A clip(rho, 1 - eps, 1 + eps))`, `rho = e^log_ratio`, elementwise.

    log_ratio: in nats; advantage: of its shape, without a unit; clip_range: `eps` > 0. Raises
    ValueError when the shapes do not match. Source: the objective of PPO, arXiv 1707.06347.
    """
    if advantage.shape != log_ratio.shape:
        raise ValueError(
            f"advantage has shape {tuple(advantage.shape)}, log_ratio has {tuple(log_ratio.shape)}"
        )
    ratio = torch.exp(log_ratio)
    return torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    )


def ratio_stats(log_ratio: Tensor, clip_range: float) -> dict[str, Tensor]:
    """approx_kl, `mean(log_ratio^2 / 2)`, and the shares of ratios above and below the range."""
    # In fp32 1 + 1e-5 is good to 1 % only; expm1 keeps deviations as small as the clip range.
    deviation = torch.expm1(log_ratio.detach())
    return {
        "approx_kl": (0.5 * log_ratio.detach() ** 2).mean(),
        "clip_high": (deviation > clip_range).to(deviation.dtype).mean(),
        "clip_low": (deviation < -clip_range).to(deviation.dtype).mean(),
    }
