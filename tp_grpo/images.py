"""Images as bytes, thumbnails, and two numbers: a prompt's diversity and an image's detail."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import Tensor

THUMBNAIL = 96  # pixels; the longest side of the images that are kept
COARSE = 16  # pixels; the longest side of the images that are compared


def to_uint8(images: Tensor) -> np.ndarray:
    """Quantise (n, 3, H, W) in [0, 1] to (n, H, W, 3) uint8; NaN becomes black."""
    pixels = (images.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def finite_images(images: Tensor) -> np.ndarray:
    """Whether each of (n, 3, H, W) is finite throughout, (n,) bool; the others cannot be scored."""
    return images.isfinite().flatten(1).all(1).cpu().numpy()


def thumbnails(images: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8, shrunk by the least whole factor to sides of at most 96 pixels."""
    return torch.from_numpy(_shrink(images, THUMBNAIL).round().astype(np.uint8))


def coarse(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, h, w, 3) fp32 in [0, 1], shrunk to sides of at most 16 pixels.

    Block means keep noise from passing for variety, and are few enough to gather every epoch.
    """
    return torch.from_numpy(_shrink(images / np.float32(255), COARSE))


def diversity(small: Tensor, group_id: Tensor) -> float:
    """RMS distance of two images of a prompt, averaged over groups, in [0, 1].

    small (N, h, w, 3) in [0, 1], from `coarse`; group_id (N,). NaN where no group has two images.
    """
    groups = [small[group_id == group] for group in group_id.unique()]
    # Two draws of variance v differ by 2 v in the mean square.
    apart = [float((2 * group.var(dim=0).mean()).sqrt()) for group in groups if len(group) > 1]
    return statistics.fmean(apart) if apart else float("nan")


def detail(images: np.ndarray) -> Tensor:
    """RMS of what 2 x 2 means remove from the luminance -> (N,) fp32: 0 flat, 0.5 a chessboard.

    images (N, H, W, 3) uint8, H and W at least 2. Grain raises it, and a grid of patches.
    """
    n, height, width = images.shape[:3]
    luminance = images[:, : height // 2 * 2, : width // 2 * 2] @ (
        np.array([0.299, 0.587, 0.114], np.float32) / 255
    )
    blocks = luminance.reshape(n, height // 2, 2, width // 2, 2)
    fine = blocks - blocks.mean(axis=(2, 4), keepdims=True)
    return torch.from_numpy(np.sqrt((fine**2).mean(axis=(1, 2, 3, 4))))


def _shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Block means of (..., H, W, 3), by the least whole factor to sides of at most `side`."""
    factor = -(-max(images.shape[-3:-1]) // side)
    height, width = (length // factor for length in images.shape[-3:-1])
    cropped = images[..., : height * factor, : width * factor, :]
    blocks = cropped.reshape(*images.shape[:-3], height, factor, width, factor, 3)
    return blocks.mean(axis=(-4, -2))
