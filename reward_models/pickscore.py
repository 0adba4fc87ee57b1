"""PickScore: which image people prefer for a prompt (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from reward_models.check import Check, matching_cases
from reward_models.clip import MODEL_FILES, PROCESSOR_FILES, PROCESSOR_NEEDED, TransformersClip
from reward_models.loading import Source

SCALE = 26.0  # brings the logit of a good image near 1, as Flow-GRPO publishes its curves


class PickScore(TransformersClip):
    """score = exp(logit_scale) x cosine / 26: about 0.75 for a poor image, 0.95 for a good one."""

    weights = Source("pickscore", "yuvalkirstain/PickScore_v1", "3.9 GB", MODEL_FILES)
    processor_weights = Source(
        "pickscore",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "4 MB",
        PROCESSOR_FILES,
        option="processor_path",
        needed=PROCESSOR_NEEDED,
    )
    doctor = Check(weights=(weights, processor_weights), cases=matching_cases)

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        return self.model.logit_scale.float().exp().item() / SCALE * self.cosine(images, prompts)
