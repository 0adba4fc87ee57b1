"""Aesthetic score: how much people like an image, whatever the prompt (LAION improved-aesthetic-predictor)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.base import Metadata, Scores
from reward_models.check import Check, Weights
from reward_models.clip import MODEL_FILES, PROCESSOR_FILES, PROCESSOR_NEEDS, load_clip
from reward_models.loading import Source, fill

CLIP_FILES = tuple(dict.fromkeys(MODEL_FILES + PROCESSOR_FILES))
CLIP_WEIGHTS = Source(
    "aesthetic", "openai/clip-vit-large-patch14", "1.7 GB", option="clip_path", files=CLIP_FILES
)
# The hub's copy of sac+logos+ava1-l14-linearMSE.pth, with the same tensors.
HEAD_WEIGHTS = Source(
    "aesthetic", "trl-lib/ddpo-aesthetic-predictor", "4 MB", file="aesthetic-model.pth"
)


class Head(nn.Module):
    """Five linear layers without activations, named as in the published file; (B, width) -> (B, 1)."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def load_head(state: Mapping[str, Tensor], source: Source, file: str = "") -> Head:
    """A Head with these weights, of the width they have."""
    first = state.get("layers.0.weight")
    head = Head(first.shape[1] if first is not None and first.ndim == 2 else 768)
    fill(source, head, dict(state), file)
    return head.eval().requires_grad_(False)


class Aesthetic:
    """score: about 1 to 10, 5 for an ordinary photograph; the prompt is not read.

    path: the head's weights (.pth or .safetensors), a folder with them or a hub id; clip_path: folder or hub id of the
    CLIP ViT-L/14. The head stays in fp32.
    """

    def __init__(
        self,
        path: str = "",
        clip_path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: Any = None,
        processor: Any = None,
        head: Head | None = None,
    ) -> None:
        self.head = (
            load_head(HEAD_WEIGHTS.state(path), HEAD_WEIGHTS, path) if head is None else head.eval()
        )
        self.clip = load_clip(
            CLIP_WEIGHTS,
            path=clip_path,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            model=model,
            processor=processor,
        )
        width, reads = self.clip.model.config.projection_dim, self.head.layers[0].in_features
        if width != reads:
            raise ValueError(
                f"aesthetic: the head reads embeddings of width {reads}, but the CLIP of clip_path gives {width}; "
                f"the published head belongs to {CLIP_WEIGHTS.repo}, 768 wide"
            )
        self.to(self.clip.device)

    def to(self, device: str | torch.device) -> Aesthetic:
        self.clip.to(device)
        self.head.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        if len(images) == 0:
            return Scores(np.zeros(0, dtype=np.float32))
        return Scores(self.head(self.clip.image(images)).squeeze(-1).cpu().numpy())


CHECKS = {
    "aesthetic": Check(
        weights=(
            Weights(CLIP_WEIGHTS.repo, 1.7, MODEL_FILES + PROCESSOR_NEEDS, CLIP_FILES),
            Weights(HEAD_WEIGHTS.repo, 0.01, (HEAD_WEIGHTS.file,)),
        )
    )
}
