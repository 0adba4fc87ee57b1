"""Which adapter reads `model.type`. A new family is a file and a line here; see docs/models.md."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tp_grpo.models.base import DTYPES, Backbone

FAMILIES = {
    "sd3": "tp_grpo.models.sd3:SD3",  # Stable Diffusion 3 and 3.5
    "flux": "tp_grpo.models.flux:Flux",  # FLUX.1
}


def adapter(kind: str) -> Any:
    """The adapter class of a `model.type`. Raises ValueError for an unknown one."""
    if kind not in FAMILIES:
        raise ValueError(f"model.type = {kind!r} is not one of {', '.join(FAMILIES)}")
    module, _, name = FAMILIES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def load(model: Any, device: torch.device) -> Backbone:
    """Load the backbone that `config.model` names; all its parts come frozen.

    Raises ValueError, before any weights load, for an unknown type, an incomplete folder, an
    impossible resolution, an option the family lacks, and a dtype the device cannot compute in.
    """
    family = adapter(model.type)
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r} is not one of {', '.join(DTYPES)}")
    if model.dtype == "fp16" and device.type != "cuda":
        raise ValueError("model.dtype = 'fp16' needs a CUDA GPU, none found; use fp32 or bf16")
    backbone: Backbone = family.load(model, device)
    return backbone
