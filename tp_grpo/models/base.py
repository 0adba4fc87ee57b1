"""What the trainer knows of a model, and which adapter reads it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tp_grpo.models.policy import Policy
from tp_grpo.settings import ModelSettings

_BACKBONES = {"sd3": "tp_grpo.models.sd3:SD3", "flux": "tp_grpo.models.flux:Flux"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The joint attention of image and text, whose modules both families name alike; Flow-GRPO's LoRA targets.
JOINT_ATTENTION = tuple(
    f"attn.{name}"
    for name in (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
)


class Backbone(Protocol):
    """A frozen text-to-image model around one trainable transformer. Legend: B samples, *L latent dims, T steps."""

    transformer: nn.Module
    lora_targets: tuple[str, ...]
    latent_shape: tuple[int, ...]
    device: torch.device

    def encode(self, prompts: list[str]) -> Any:
        """A frozen dataclass of leading dim B in host memory, opaque to everyone else."""
        ...

    def encode_ahead(self, prompts: list[str]) -> None:
        """Put the conditions of these prompts into the cache on disk, where they are not there yet."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """(T+1,) fp32, falling from 1 to 0, as the checkpoint's own scheduler sets them."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any, guidance_scale: float) -> Tensor:
        """x (B, *L) fp32 at sigma, 0-dim or (B,); cond on the device -> v (B, *L) fp32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Clean latents (B, *L) -> images (B, 3, H, W) fp32 in [0, 1]."""
        ...

    def export(self, policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
        """Write the trained part with these values, by name, as peft and the stock pipeline read it.

        Raises RuntimeError if it did not survive.
        """
        ...


def load(model: ModelSettings, device: torch.device) -> Backbone:
    """Load the backbone that `config.model` names; the transformer and all else come frozen.

    Raises ValueError, before any weights load, for a folder that does not hold what it should, an
    impossible resolution, an option that the family lacks, or a dtype that the device lacks.
    """
    if model.dtype == "fp16" and device.type != "cuda":
        raise ValueError(
            "model.dtype = 'fp16' needs a CUDA GPU, and there is none; use fp32 or bf16"
        )
    module, _, name = _BACKBONES[model.type].partition(":")
    backbone: Backbone = getattr(importlib.import_module(module), name).load(model, device)
    return backbone
