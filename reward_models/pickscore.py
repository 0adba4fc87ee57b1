"""PickScore: which image people prefer for a prompt (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reward_models.base import Metadata, Scores
from reward_models.check import Check, Weights, matching_cases
from reward_models.clip import MODEL_FILES, PROCESSOR_FILES, PROCESSOR_NEEDS, load_clip
from reward_models.loading import Source

WEIGHTS = Source("pickscore", "yuvalkirstain/PickScore_v1", "3.9 GB", files=MODEL_FILES)
PROCESSOR = Source(
    "pickscore",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "4 MB",
    option="processor_path",
    files=PROCESSOR_FILES,
)
SCALE = 26.0  # brings the logit of a good image near 1, as Flow-GRPO publishes its curves


class PickScore:
    """score = exp(logit_scale) x cosine / 26: about 0.75 for a poor image, 0.95 for a good one.

    path: local folder or hub id of the CLIPModel; processor_path: of its processor.
    """

    def __init__(
        self,
        path: str = "",
        processor_path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        self.clip = load_clip(
            WEIGHTS,
            PROCESSOR,
            path=path,
            processor_path=processor_path,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            model=model,
            processor=processor,
        )

    def to(self, device: str | torch.device) -> PickScore:
        self.clip.to(device)
        return self

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        scale = float(self.clip.model.logit_scale.float().exp())
        return Scores((scale / SCALE * self.clip.cosine(images, prompts)).astype(np.float32))


CHECKS = {
    "pickscore": Check(
        weights=(
            Weights(WEIGHTS.repo, 3.9, WEIGHTS.files),
            Weights(PROCESSOR.repo, 0.01, PROCESSOR_NEEDS, PROCESSOR.files),
        ),
        cases=matching_cases,
    )
}
