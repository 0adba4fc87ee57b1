"""HPS v2.1: human preference by a finetuned CLIP ViT-H/14 (Wu et al. 2023, arXiv 2306.09341)."""

from __future__ import annotations

import numpy as np
import torch

from reward_models.base import Metadata, Scores
from reward_models.check import Check, Weights, matching_cases
from reward_models.clip import OpenClip, load_open_clip
from reward_models.loading import Source

WEIGHTS = Source("hpsv2", "xswu/HPSv2", "3.9 GB", file="HPS_v2.1_compressed.pt")


class HPSv2:
    """score = 100 cosine, about 20 to 35, as the benchmark's tables print it.

    path: the checkpoint file, a folder with it or a hub id; architecture: its name in open_clip.
    """

    def __init__(
        self,
        path: str = "",
        architecture: str = "ViT-H-14",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: OpenClip | None = None,
    ) -> None:
        # HPS shows its model the whole image, padded to a square, where CLIP would cut the sides off.
        self.clip = model or load_open_clip(
            WEIGHTS,
            architecture,
            path=path,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            resize_mode="longest",
        )

    def to(self, device: str | torch.device) -> HPSv2:
        self.clip.to(device)
        return self

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        return Scores((100 * self.clip.cosine(images, prompts)).astype(np.float32))


CHECKS = {
    "hpsv2": Check(
        packages=("open_clip",),
        extra="geneval",
        weights=(Weights(WEIGHTS.repo, 3.9, (WEIGHTS.file,)),),
        cases=matching_cases,
    )
}
