"""A checkpoint's shapes without its weights: the backbone on the meta device, for counting what it will cost, or with
random weights on a real one, for measuring it."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn

from tp_grpo.models import base, pretrained
from tp_grpo.models.pipeline import apply_options
from tp_grpo.settings import ModelSettings

META = torch.device("meta")


@dataclass(frozen=True)
class Architecture:
    """A pipeline of `type` (model.type): the configs of its parts, and its text encoders' sizes."""

    type: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    text_encoders: dict[str, int]  # name -> parameters
    clip_tokens: int  # of a padded prompt

    @property
    def backbone(self) -> Any:
        """The adapter's class."""
        return _backbone(self.type)


def read(model: ModelSettings) -> Architecture:
    """The architecture of the checkpoint that `config.model` names: a local folder, or a published hub id.

    Raises ValueError for a checkpoint that cannot serve the config, and for a hub id whose architecture does not ship.
    """
    folder = pretrained.local_folder(model.path)
    if folder is not None:
        pretrained.check_folder(folder, _backbone(model.type).pipeline_class.__name__)
        found = _of_folder(folder, model.type)
    else:
        found = _of_hub(model)
    found.backbone.check_config(model, transformer=found.transformer, vae=found.vae)
    return found


def published() -> list[dict[str, Any]]:
    """The architectures that ship with us: an `Architecture`'s fields, and the hub_id they were taken from."""
    folder = resources.files("tp_grpo.models") / "architectures"
    return [json.loads(file.read_text()) for file in sorted(folder.iterdir(), key=lambda f: f.name)]


def build(shapes: Architecture, model: ModelSettings, device: torch.device = META) -> Any:
    """The backbone of `config.model`, frozen, on the device, with random weights; it has no text encoders."""
    pipeline = SimpleNamespace(
        transformer=_build(shapes.transformer, base.DTYPES[model.dtype], device),
        vae=_build(shapes.vae, base.DTYPES[model.vae_dtype], device),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(shapes.scheduler),
        vae_scale_factor=pretrained.vae_scale(shapes.vae),
    )
    if device != META:
        apply_options(pipeline.transformer, model)
    backbone = shapes.backbone(pipeline, model, device, None)
    if shapes.type == "sd3":
        backbone._empty = conditions(shapes, model, 1, device)
    return backbone


def conditions(
    shapes: Architecture, model: ModelSettings, rows: int, device: torch.device = META
) -> Any:
    """A random condition of `rows` prompts: SD3 puts CLIP's tokens beside T5's, FLUX takes T5's alone."""
    config, dtype = shapes.transformer, base.DTYPES[model.dtype]
    tokens = model.max_sequence_length + (shapes.clip_tokens if shapes.type == "sd3" else 0)
    return shapes.backbone.cond_class(
        embeds=torch.randn(rows, tokens, config["joint_attention_dim"], dtype=dtype, device=device),
        pooled=torch.randn(rows, config["pooled_projection_dim"], dtype=dtype, device=device),
    )


def _backbone(kind: str) -> Any:
    module, _, name = base._BACKBONES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def _build(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # in fp32 first, FLUX.1-dev would need twice its memory
    try:
        with device:
            module: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    finally:
        torch.set_default_dtype(default)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.to(dtype)
    return module.requires_grad_(False).eval()


def _of_hub(model: ModelSettings) -> Architecture:
    known = {entry.pop("hub_id"): entry for entry in published()}
    if model.path not in known:
        raise ValueError(
            f"model.path = {model.path!r} is no folder here, and of the hub's models only the shapes of "
            f"{' and '.join(known)} are known without a download"
        )
    found = Architecture(**known[model.path])
    if found.type != model.type:
        raise ValueError(f"model.type = {model.type!r}, but {model.path} is a {found.type!r}")
    return found


def _of_folder(folder: Path, kind: str) -> Architecture:
    encoders = sorted(path.name for path in folder.glob("text_encoder*") if path.is_dir())
    clip = folder / "text_encoder"
    return Architecture(
        type=kind,
        transformer=_json(folder / "transformer"),
        vae=_json(folder / "vae"),
        scheduler=_json(folder / "scheduler", "scheduler_config.json"),
        text_encoders={name: _count(folder / name) for name in encoders},
        clip_tokens=_json(clip)["max_position_embeddings"] if clip.is_dir() else 77,
    )


def _json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / name).read_text())
    return config


def _count(folder: Path) -> int:
    """Parameters in a folder's .safetensors files, from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            total += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in names)
    return total
