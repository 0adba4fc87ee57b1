"""What the trainer knows of a model, and how a checkpoint is found and checked before its weights load."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_BACKBONES = {"sd3": "tp_grpo.models.sd3:SD3"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_REPOSITORY = Path(__file__).resolve().parents[2]


class Backbone(Protocol):
    """A frozen text-to-image model around one trainable transformer. Legend: B samples, *L latent dims, T steps."""

    transformer: nn.Module
    lora_targets: tuple[str, ...]
    latent_shape: tuple[int, ...]
    device: torch.device

    def encode(self, prompts: list[str]) -> Any:
        """A frozen dataclass of leading dim B, opaque to everyone else."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """(T+1,) fp32, falling from 1 to 0, as the checkpoint's own scheduler sets them."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any, guidance_scale: float) -> Tensor:
        """x (B, *L) fp32 at sigma (0-dim) -> v (B, *L) fp32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Clean latents (B, *L) -> images (B, 3, H, W) in [0, 1]."""
        ...

    def save_lora(self, folder: Path) -> None:
        """Write the adapter as the stock pipeline's `load_lora_weights` reads it."""
        ...


def load(model: Any, device: torch.device) -> Backbone:
    """Load the backbone that `config.model` names; the transformer and all else come frozen.

    Raises ValueError, before any weights load, for an unknown type, a folder that does not hold what it should, an
    impossible resolution, and a dtype that the device cannot compute in.
    """
    if model.type not in _BACKBONES:
        raise ValueError(f"model.type = {model.type!r} is not one of {', '.join(_BACKBONES)}")
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r} is not one of {', '.join(DTYPES)}")
    if model.dtype == "fp16" and device.type != "cuda":
        raise ValueError("model.dtype = 'fp16' needs a CUDA GPU, and there is none; use fp32 or bf16")
    module, _, name = _BACKBONES[model.type].partition(":")
    backbone: Backbone = getattr(importlib.import_module(module), name).load(model, device)
    return backbone


def find_checkpoint(path: str, pipeline_class: str) -> str:
    """A local folder (also relative to the repository), checked to be complete; or `path` as it is, a hub id.

    Raises ValueError naming the missing folder or file, or the pipeline class that the folder holds instead.
    """
    for folder in (Path(path), _REPOSITORY / path):
        if folder.is_dir():
            _check_folder(folder, pipeline_class)
            return str(folder)
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return path
    raise ValueError(f"model.path = {path!r}: there is no such folder, and it does not look like a hub id (owner/name)")


def _check_folder(folder: Path, pipeline_class: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model.path = {str(folder)!r} is not a diffusers checkpoint: it has no model_index.json")
    components = json.loads(index.read_text())
    found = components.get("_class_name")
    if found != pipeline_class:
        raise ValueError(f"model.path = {str(folder)!r} holds a {found}; this model.type needs a {pipeline_class}")
    for name, origin in components.items():
        if name.startswith("_") or not isinstance(origin, list) or origin[0] is None:
            continue
        if not (folder / name).is_dir():
            raise ValueError(
                f"model.path = {str(folder)!r}: its {name} ({origin[1]}) is missing; fetch the folder {name}/"
            )
        is_model = name in ("transformer", "vae") or name.startswith("text_encoder")
        if is_model and not any((folder / name).glob("*.safetensors")):
            raise ValueError(f"model.path = {str(folder)!r}: {name}/ holds no .safetensors weights")


def unreadable(path: str) -> str:
    """What to say when `path` is no folder and cannot be read from the hub or its local cache."""
    return (
        f"model.path = {path!r} is neither a folder here nor a hub repository that can be read. Check the spelling; "
        "for a gated model accept its licence on the hub and log in (`hf auth login`); offline, download it first "
        f"(`hf download {path}`) or name the folder"
    )


def check_resolution(height: int, width: int, multiple: int, positions: int) -> None:
    """Raises ValueError with the nearest sizes when height or width is no multiple of VAE scale x patch, or too large.

    positions: patches a side that the transformer has position embeddings for.
    """
    for name, size in (("height", height), ("width", width)):
        if size > multiple * positions:
            raise ValueError(f"model.{name} = {size} is more than this model's {multiple * positions} pixels")
    for name, size in (("height", height), ("width", width)):
        if size <= 0 or size % multiple:
            below = size // multiple * multiple
            near = f"{below} and {below + multiple}" if below > 0 else f"{multiple}"
            raise ValueError(
                f"model.{name} = {size} is not a multiple of {multiple} pixels (VAE scale x patch); the nearest: {near}"
            )
