"""DiffusionNFT on noised clean images: towards the good ones, away from the bad ones."""

import torch
from torch import Tensor

from tp_grpo.method.points import Points, Predictions, mean, scale
from tp_grpo.types import Loss

LARGEST = 5.0  # advantages beyond it count as it


def nft(points: Points, v: Predictions, *, nft_mix: float, beta: float) -> Loss:
    """`(5 / b) mean(r |x0hat(v+) - x_0|^2 / w + (1 - r) |x0hat(v-) - x_0|^2 / w) + beta kl`.

    `v+- = v_old +- b (v - v_old)`: the policy is trained through its difference from the old one,
    `r = clip(A, +-5) / 10 + 1/2` is how good the image is, and the w are detached (`points.scale`).
    `kl = mean((v - v_reference)^2)`. nft_mix: b > 0, published 1 (0.1 with OCR and several
    rewards). Source: DiffusionNFT, arXiv 2509.16117.
    """
    assert v.old is not None
    good = points.advantage.clamp(-LARGEST, LARGEST) / (2 * LARGEST) + 0.5
    difference = nft_mix * (v.policy - v.old)

    def distance(velocity: Tensor) -> Tensor:
        error = points.image_error(velocity)
        return mean(error**2) / scale(error)

    towards, away = distance(v.old + difference), distance(v.old - difference)
    policy = LARGEST / nft_mix * (good * towards + (1 - good) * away).mean()
    moved = points.moved(v.policy, v.old).mean().detach()
    kl = torch.zeros_like(policy)
    if v.reference is not None:
        kl = points.moved(v.policy, v.reference).mean()
    return Loss(policy + beta * kl, {"policy": policy.detach(), "kl": kl.detach(), "moved": moved})
