"""A checkpoint's shapes without its weights: meta tensors to count with, random ones to time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn

from tp_grpo.models import checkpoint_files, families, pretrained, tensor_names
from tp_grpo.models.base import DTYPES
from tp_grpo.models.pipeline import apply_options, check_options
from tp_grpo.settings import ModelSettings

META = torch.device("meta")


@dataclass(frozen=True)
class Architecture:
    """A pipeline of `type` (model.type): the configs of its parts, and its text encoders' sizes."""

    type: str
    index: dict[str, Any]  # the pipeline's own options
    transformer: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    text_encoders: dict[str, int]  # name -> parameters
    clip_tokens: int  # of a padded prompt


def read(model: ModelSettings) -> Architecture:
    """The architecture of the checkpoint that `config.model` names: a folder or a published hub id.

    Raises ValueError for a checkpoint that cannot serve the config, and for an unknown hub id.
    """
    family = families.adapter(model.type)
    pretrained.check_file(model.path, family.pipeline_class)
    folder = pretrained.local_folder(model.path)
    if folder is not None:
        pretrained.check_folder(folder, family.pipeline_class.__name__)
    shapes = _of_hub(model) if folder is None else _of_folder(folder, model.type)
    with checkpoint_files.usable(model.path):
        family.check_config(model, vars(shapes))
    if folder is not None:
        tensor_names.check(folder)
    return shapes


def build(shapes: Architecture, model: ModelSettings, device: torch.device = META) -> Any:
    """The backbone of `config.model`, frozen, with random weights and without text encoders.

    Raises ValueError for options or configs that cannot be used.
    """
    family = families.adapter(shapes.type)
    if device != META:
        check_options(family, model)
    with checkpoint_files.usable(model.path):
        pipeline = SimpleNamespace(
            transformer=_build(shapes.transformer, DTYPES[model.dtype], device),
            vae=_build(shapes.vae, DTYPES[model.vae_dtype], device),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(shapes.scheduler),
        )
    if device != META:
        apply_options(pipeline.transformer, model)
    backbone = family(pipeline, model, device, None)
    if backbone.classifier_free:
        backbone.empty = conditions(shapes, model, 1, device)
    return backbone


def conditions(
    shapes: Architecture, model: ModelSettings, rows: int, device: torch.device = META
) -> Any:
    """A random condition of `rows` prompts."""
    family, tokens = families.adapter(shapes.type), model.max_sequence_length
    options: Any = {"dtype": DTYPES[model.dtype], "device": device}
    return family.random_cond(shapes.transformer, rows, tokens, shapes.clip_tokens, **options)


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
    known = pretrained.published()
    if model.path not in known:
        raise ValueError(
            f"model.path = {model.path!r} is no local folder, and without a download "
            f"only the shapes of these are known: {', '.join(known)}"
        )
    entry = known[model.path]
    if entry["type"] != model.type:
        raise ValueError(f"model.type = {model.type!r}, but {model.path} is a {entry['type']!r}")
    return Architecture(**{field.name: entry[field.name] for field in fields(Architecture)})


def _of_folder(folder: Path, kind: str) -> Architecture:
    listed = checkpoint_files.components(folder)
    encoders = sorted(name for name in listed if name.startswith("text_encoder"))
    name = "text_encoder"
    clip = _json(folder / name / "config.json") if name in encoders else {}
    return Architecture(
        type=kind,
        index=_json(folder / "model_index.json"),
        transformer=_json(folder / "transformer" / "config.json", listed["transformer"]),
        vae=_json(folder / "vae" / "config.json", listed["vae"]),
        scheduler=_json(folder / "scheduler" / "scheduler_config.json"),
        text_encoders={name: _count(folder / name) for name in encoders},
        clip_tokens=clip.get("max_position_embeddings", 77),
    )


def _json(file: Path, origin: tuple[str, str] | None = None) -> dict[str, Any]:
    """A config; its class is that of its `origin` in model_index.json, as where weights load."""
    config = checkpoint_files.read_json(file)
    return checkpoint_files.Fields(config | ({"_class_name": origin[1]} if origin else {}), file)


def _count(folder: Path) -> int:
    """Parameters in the files that a part's weights load from, by their headers."""
    total = 0
    for file in checkpoint_files.weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        total += sum(torch.Size(shape).numel() for shape in shapes)
    return total
