"""The shapes of a checkpoint without its weights: modules on the meta device, for counting what they will cost."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tp_grpo.models import base

_PIPELINES = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
META = torch.device("meta")


@dataclass(frozen=True)
class Architecture:
    """A pipeline of `type` (model.type): the configs of its transformer and VAE, and its text encoders' sizes."""

    type: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: dict[str, int]  # name -> parameters
    clip_tokens: int  # tokens of a CLIP prompt, padded

    @property
    def vae_scale(self) -> int:
        """Pixels a side of a latent entry."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    def latent_shape(self, model: Any) -> tuple[int, int, int]:
        """(channels, height, width) of a latent of `config.model`'s size."""
        return self.vae["latent_channels"], model.height // self.vae_scale, model.width // self.vae_scale

    def text_tokens(self, model: Any) -> int:
        """Tokens of a condition: SD3 puts the T5 prompt behind CLIP's, FLUX has the T5 prompt alone."""
        return int(model.max_sequence_length + (self.clip_tokens if self.type == "sd3" else 0))


def read(model: Any) -> Architecture:
    """The architecture of the checkpoint that `config.model` names: a local folder, or a published hub id.

    Raises ValueError for a folder that is not whole, and for a hub id whose architecture does not ship with us.
    """
    if model.type not in _PIPELINES:
        raise ValueError(f"model.type = {model.type!r} is not one of {', '.join(_PIPELINES)}")
    path = base.find_checkpoint(model.path, _PIPELINES[model.type])
    if Path(path).is_dir():
        found = _of_folder(Path(path), model.type)
        unit = found.vae_scale * (found.transformer["patch_size"] if model.type == "sd3" else 2)
        base.check_resolution(model.height, model.width, unit, found.transformer.get("pos_embed_max_size", 2**16))
        return found
    for known in published():
        if known["hub_id"] == path:
            return Architecture(**{name: value for name, value in known.items() if name != "hub_id"})
    ids = ", ".join(known["hub_id"] for known in published())
    raise ValueError(
        f"model.path = {path!r}: its architecture is not known before it is downloaded; name a local folder, or one "
        f"of {ids}"
    )


def published() -> list[dict[str, Any]]:
    """The architectures that ship with us: an `Architecture`'s fields and the hub_id they were taken from."""
    folder = resources.files("tp_grpo.models") / "architectures"
    return [json.loads(file.read_text()) for file in sorted(folder.iterdir(), key=lambda f: f.name)]


def build_transformer(architecture: Architecture, dtype: torch.dtype) -> Any:
    """The frozen transformer on the meta device."""
    return _build(architecture.transformer, dtype)


def build_vae(architecture: Architecture, dtype: torch.dtype) -> Any:
    """The frozen VAE on the meta device."""
    return _build(architecture.vae, dtype)


def lora_targets(architecture: Architecture) -> tuple[str, ...]:
    """The published targets, as the backbone has them."""
    module, _, name = base._BACKBONES[architecture.type].partition(":")
    targets: tuple[str, ...] = getattr(importlib.import_module(module), name).lora_targets
    return targets


def forward_inputs(architecture: Architecture, model: Any, rows: int) -> dict[str, Any]:
    """Keyword arguments of the transformer's forward for `rows` rows, as the backbones give them; meta tensors."""
    dtype = base.DTYPES[model.dtype]

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device=META)

    config, tokens = architecture.transformer, architecture.text_tokens(model)
    channels, height, width = architecture.latent_shape(model)
    inputs: dict[str, Any] = {
        "encoder_hidden_states": empty(rows, tokens, config["joint_attention_dim"]),
        "pooled_projections": empty(rows, config["pooled_projection_dim"]),
        "timestep": empty(rows, of=torch.float32),
        "return_dict": False,
    }
    if architecture.type == "sd3":
        return inputs | {"hidden_states": empty(rows, channels, height, width)}
    packed = height // 2 * (width // 2)  # FLUX takes 2 x 2 latent entries as one token
    inputs |= {"hidden_states": empty(rows, packed, channels * 4)}
    inputs |= {"img_ids": empty(packed, 3), "txt_ids": empty(tokens, 3)}
    return inputs | ({"guidance": empty(rows, of=torch.float32)} if config["guidance_embeds"] else {})


def _build(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    import diffusers

    kind = getattr(diffusers, config["_class_name"])
    with META:
        module: nn.Module = kind.from_config(config)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.to(dtype)
    return module.requires_grad_(False).eval()


def _of_folder(folder: Path, kind: str) -> Architecture:
    encoders = sorted(path.name for path in folder.glob("text_encoder*") if path.is_dir())
    return Architecture(
        type=kind,
        transformer=_json(folder / "transformer"),
        vae=_json(folder / "vae"),
        text_encoders={name: _count(folder / name) for name in encoders},
        clip_tokens=_json(folder / "text_encoder").get("max_position_embeddings", 77) if encoders else 77,
    )


def _json(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _count(folder: Path) -> int:
    """Parameters in a folder's .safetensors files, from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            total += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    return total
