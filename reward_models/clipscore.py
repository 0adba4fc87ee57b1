"""CLIPScore: how well image and prompt agree, by OpenAI's CLIP ViT-L/14 (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reward_models.base import Metadata, Scores
from reward_models.check import Check, Weights, matching_cases
from reward_models.clip import MODEL_FILES, PROCESSOR_FILES, PROCESSOR_NEEDS, load_clip
from reward_models.loading import Source

FILES = tuple(dict.fromkeys(MODEL_FILES + PROCESSOR_FILES))
WEIGHTS = Source("clipscore", "openai/clip-vit-large-patch14", "1.7 GB", files=FILES)
SCALE = 100 / 30  # the logit over 30, as Flow-GRPO reports it


class ClipScore:
    """score = 100 cosine / 30: about 0.7 to 1.1 for generated images."""

    def __init__(
        self,
        path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        self.clip = load_clip(
            WEIGHTS,
            path=path,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            model=model,
            processor=processor,
        )

    def to(self, device: str | torch.device) -> ClipScore:
        self.clip.to(device)
        return self

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        return Scores((SCALE * self.clip.cosine(images, prompts)).astype(np.float32))


CHECKS = {
    "clipscore": Check(
        weights=(Weights(WEIGHTS.repo, 1.7, MODEL_FILES + PROCESSOR_NEEDS, FILES),),
        cases=matching_cases,
    )
}
