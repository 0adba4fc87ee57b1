"""CLIPScore: how well image and prompt agree (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reward_models.check import Check, matching_cases
from reward_models.clip import TransformersClip, openai_clip

RESIZES = ("bicubic", "bilinear")


class ClipScore(TransformersClip):
    """score = 100 cosine / 30 by OpenAI's CLIP ViT-L/14: about 0.7 to 1.1 for generated images.

    resize: "bicubic", as CLIP was trained, or "bilinear", as Flow-GRPO has it: on floats that are
    not rounded to 256 levels. Other options: see `TransformersClip`.
    """

    weights = openai_clip("clipscore")
    scale = 100 / 30  # the logit over 30, as Flow-GRPO reports it
    doctor = Check(weights=(weights,), cases=matching_cases)

    def __init__(
        self,
        path: str = "",
        processor_path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        resize: str = "bicubic",
        model: Any = None,
        processor: Any = None,
    ) -> None:
        if resize not in RESIZES:
            raise ValueError(f"clipscore: resize = {resize!r} is not one of {', '.join(RESIZES)}")
        self.resize = resize
        super().__init__(path, processor_path, device, dtype, batch_size, model, processor)

    def pixels(self, processor: Any, images: np.ndarray) -> Tensor:
        """images (B, H, W, 3) uint8 -> (B, 3, h, w), resized as `resize` says."""
        if self.resize == "bicubic":
            return super().pixels(processor, images)
        values = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        return bilinear(values, processor).to(self.dtype)


def bilinear(values: Tensor, processor: Any) -> Tensor:
    """values (B, 3, H, W) fp32 in [0, 1] with the sizes, mean and deviation of a CLIP's processor.

    The shorter side is resized with antialiasing, the centre is cropped.
    """
    height, width = values.shape[2:]
    side, crop = processor.size["shortest_edge"], processor.crop_size
    short = min(height, width)
    size = (side * height // short, side * width // short)
    values = interpolate(values, size, mode="bilinear", antialias=True)
    top, left = round((size[0] - crop["height"]) / 2), round((size[1] - crop["width"]) / 2)
    values = values[:, :, top : top + crop["height"], left : left + crop["width"]]
    mean, std = (
        torch.tensor(numbers, device=values.device)[:, None, None]
        for numbers in (processor.image_mean, processor.image_std)
    )
    return (values - mean) / std
