"""An epoch's pictures as numbers: how varied those of a prompt are, how much finest detail they have."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import Tensor

COARSE = 16  # pixels; the side that images are shrunk to before they are compared


def coarse(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, h, w, 3) fp32 in [0, 1], shrunk by the least whole factor to sides of at most 16.

    The means over blocks keep noise from passing for variety, and are few enough to be gathered every epoch.
    """
    n, height, width = images.shape[:3]
    factor = -(-max(height, width) // COARSE)
    height, width = height // factor, width // factor
    cropped = images[:, : height * factor, : width * factor] / np.float32(255)
    return torch.from_numpy(cropped.reshape(n, height, factor, width, factor, 3).mean(axis=(2, 4)))


def diversity(small: Tensor, group_id: Tensor) -> float:
    """How far apart two images of a prompt are: RMS over pixels, averaged over groups, in [0, 1].

    small: (N, h, w, 3) in [0, 1], as `coarse` gives them; group_id (N,). NaN where no group has two images.
    """
    groups = [small[group_id == group] for group in group_id.unique()]
    # Two draws of variance v differ by 2 v in the mean square.
    apart = [float((2 * group.var(dim=0).mean()).sqrt()) for group in groups if len(group) > 1]
    return statistics.fmean(apart) if apart else float("nan")


def detail(images: np.ndarray) -> Tensor:
    """RMS of what 2 x 2 means take away from the luminance -> (N,) fp32: 0 where flat, 0.5 for a chessboard.

    images (N, H, W, 3) uint8, H and W at least 2. It sees grain and the grids that a transformer's patches leave.
    """
    n, height, width = images.shape[:3]
    luminance = images[:, : height // 2 * 2, : width // 2 * 2] @ (np.array([0.299, 0.587, 0.114], np.float32) / 255)
    blocks = luminance.reshape(n, height // 2, 2, width // 2, 2)
    fine = blocks - blocks.mean(axis=(2, 4), keepdims=True)
    return torch.from_numpy(np.sqrt((fine**2).mean(axis=(1, 2, 3, 4))))
