"""JPEG compressibility: small files score high. It needs no weights, so it suits a first try."""

from __future__ import annotations

import io

import numpy as np

from reward_models.base import Metadata, Scores
from reward_models.check import Check, golden_cases


class Jpeg:
    """score = -kB / scale, at most 0; extras: size_kb, in units of 1000 bytes.

    quality: of the JPEG, 1 to 95. scale: kB for a score of -1. Black et al. 2023 (arXiv
    2305.13301) use 95 and 500.
    """

    # A plain image makes the smallest file, noise the largest.
    doctor = Check(cases=lambda: golden_cases(plain=2, text=1))

    def __init__(self, quality: int = 95, scale: float = 500.0) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"jpeg: quality = {quality} must lie in 1 .. 95")
        if not scale > 0:
            raise ValueError(f"jpeg: scale = {scale} must be above 0")
        self.quality, self.scale = quality, scale

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        size_kb = np.array([self._bytes(image) / 1000 for image in images], dtype=np.float32)
        return Scores(-size_kb / np.float32(self.scale), {"size_kb": size_kb})

    def _bytes(self, image: np.ndarray) -> int:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=self.quality)
        return file.tell()
