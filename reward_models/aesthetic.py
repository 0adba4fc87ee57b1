"""How much people like an image, whatever the prompt (LAION improved-aesthetic-predictor)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.check import Check
from reward_models.clip import TransformersClip, openai_clip
from reward_models.loading import Source

if TYPE_CHECKING:
    from typing_extensions import Self


class Head(nn.Module):
    """Five linear layers without activations, named as in the file; (B, width) -> (B, 1)."""

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


class Aesthetic(TransformersClip):
    """score: about 1 to 10, 5 for an ordinary photograph; the prompt is not read.

    path: the head's weights (.pth or .safetensors), a folder with them, such as a clone of the
    original repository, or a hub id.
    clip_path: a local folder or hub id of the CLIP ViT-L/14. head: already loaded.
    The head stays in fp32.
    """

    weights = openai_clip("aesthetic", option="clip_path")
    # The hub's copy of sac+logos+ava1-l14-linearMSE.pth, with the same tensors.
    head_weights = Source(
        "aesthetic",
        "trl-lib/ddpo-aesthetic-predictor",
        "4 MB",
        ("aesthetic-model.pth",),
        aliases=("sac+logos+ava1-l14-linearMSE.pth",),
    )
    doctor = Check(weights=(weights, head_weights))

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
        head = self._load_head(path) if head is None else head
        super().__init__(clip_path, "", device, dtype, batch_size, model, processor)
        width, expected = self.model.config.projection_dim, head.layers[0].in_features
        if width != expected:
            raise ValueError(
                f"aesthetic: the head reads embeddings of width {expected}, but the CLIP of "
                f"clip_path gives {width}; the published one is for {self.weights.repo}, 768 wide"
            )
        self.head = head.eval().requires_grad_(False).to(self.device)

    def _load_head(self, path: str) -> Head:
        state = self.head_weights.state(path)
        first = state.get("layers.0.weight")
        head = Head(first.shape[1]) if first is not None and first.ndim == 2 else Head()
        self.head_weights.fill(head, state, path)
        return head

    def to(self, device: str | torch.device) -> Self:
        self.head.to(device)
        return super().to(device)

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        return self.head(self.image(images)).squeeze(-1)
