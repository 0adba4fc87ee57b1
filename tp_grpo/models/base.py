"""What the trainer knows of a model: the protocol that every adapter implements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tp_grpo.models.policy import Policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Backbone(Protocol):
    """A frozen text-to-image model around one trainable transformer.

    The velocity is always `eps - x_0` and sigma falls from 1 to 0: signs, timestep scales, packing
    and the kind of guidance stay inside. Legend: B samples, *L latent dims, T steps.
    """

    transformer: nn.Module
    lora_targets: tuple[str, ...]
    frozen: tuple[str, ...]  # modules without a part in the velocity, which cannot be trained
    latent_shape: tuple[int, ...]
    device: torch.device

    def encode(self, prompts: list[str]) -> Any:
        """A frozen dataclass of leading dim B in host memory, opaque to everyone else."""
        ...

    def encode_ahead(self, prompts: list[str]) -> None:
        """Add the conditions that the cache on disk lacks."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """(T+1,) fp32, falling from 1 to 0, as the checkpoint's scheduler sets them."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any, guidance_scale: float) -> Tensor:
        """x (B, *L) fp32 at sigma, 0-dim or (B,); cond on the device -> v (B, *L) fp32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Clean latents (B, *L) -> images (B, 3, H, W) fp32 in [0, 1]."""
        ...

    def begin_with(self, path: str) -> Mapping[str, Any]:
        """The updates of an adapter's file by module, for `adapter_file.begin`.

        To be called before the transformer has adapters. Raises ValueError for another model's.
        """
        ...

    def export(self, policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
        """Write the trained part with these values, by name, for peft and the stock pipeline.

        Raises RuntimeError if the files differ from the values.
        """
        ...
