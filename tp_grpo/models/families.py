"""The adapter of each `model.type`; docs/models.md says how to add one."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tp_grpo.models.base import Backbone
from tp_grpo.settings import ModelSettings

FAMILIES = {
    "sd3": "tp_grpo.models.sd3:SD3",  # Stable Diffusion 3 and 3.5
    "flux": "tp_grpo.models.flux:Flux",  # FLUX.1
    "klein": "tp_grpo.models.klein:Klein",  # FLUX.2-klein
    "zimage": "tp_grpo.models.zimage:ZImage",  # Z-Image
    "qwen": "tp_grpo.models.qwen:QwenImage",  # Qwen-Image
}


def adapter(kind: str) -> Any:
    """The adapter class of a `model.type`. Raises ValueError for an unknown one."""
    if kind not in FAMILIES:
        raise ValueError(f"model.type = {kind!r} is not one of {', '.join(FAMILIES)}")
    module, _, name = FAMILIES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def load(model: ModelSettings, device: torch.device) -> Backbone:
    """Load the backbone that `config.model` names; all its parts come frozen.

    Raises ValueError, before any weights load, for an incomplete folder, an impossible resolution,
    an option that the family lacks, or a dtype that the device lacks.
    """
    if model.dtype == "fp16" and device.type != "cuda":
        raise ValueError("model.dtype = 'fp16' needs a CUDA GPU, none found; use fp32 or bf16")
    backbone: Backbone = adapter(model.type).load(model, device)
    return backbone
