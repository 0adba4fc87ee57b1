"""Transformers and VAEs of SD3's classes with random weights, small enough for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from config import base
from tp_grpo.models import architecture
from tp_grpo.settings import Settings

CPU = torch.device("cpu")
CHANNELS, TEXT_TOKENS, POOLED = 8, 16, 64
PIXELS = 4  # of the image a latent's side; the transformer's patches are 2 x 2 latents


@dataclass(frozen=True)
class Size:
    """Width, depth and image side in pixels; (side / 8)^2 image tokens and 16 of text."""

    heads: int
    layers: int
    side: int

    @property
    def width(self) -> int:
        return 32 * self.heads


SIZES = {"small": Size(heads=2, layers=2, side=32), "medium": Size(heads=4, layers=4, side=48)}


def settings(
    size: Size,
    *,
    steps: int,
    window: int,
    batch: int,
    max_rows: int,
    start: int = 0,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """The published settings at that size, in fp32, without guidance (which doubles every row).

    fields: others that differ from config/base.py, as {"train.beta": 0.0}.
    """
    c = base.get_config()
    c.run_name = "random"
    c.model.update(
        path="random",
        dtype="fp32",
        height=size.side,
        width=size.side,
        max_sequence_length=TEXT_TOKENS,
    )
    c.sample.update(
        guidance_scale=1.0, steps=steps, window_size=window, batch_size=batch, max_rows=max_rows
    )
    c.sample.update(window_start=start, groups_per_epoch=1, group_size=max(2, batch))
    c.train.update(updates_per_epoch=1, max_ratio_dev=float("inf"))
    c.update_from_flattened_dict(dict(fields))
    return Settings.read(c)


def shapes(size: Size) -> architecture.Architecture:
    transformer = {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": size.side // PIXELS,
        "pos_embed_max_size": size.side // PIXELS // 2,
        "patch_size": 2,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": size.layers,
        "attention_head_dim": 32,
        "num_attention_heads": size.heads,
        "joint_attention_dim": size.width,
        "caption_projection_dim": size.width,
        "pooled_projection_dim": POOLED,
        "qk_norm": "rms_norm",
    }
    vae = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 16, 32],
        "layers_per_block": 1,
        "latent_channels": CHANNELS,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }
    scheduler = {"shift": 3.0}  # SD3's: the last step starts at sigma 0.009
    return architecture.Architecture("sd3", {}, transformer, vae, scheduler, {}, clip_tokens=0)


def build(size: Size, config: Settings) -> tuple[Any, Any]:
    """The backbone, and the conditions of a batch; the same for the same size and batch."""
    torch.manual_seed(0)
    of = shapes(size)
    backbone = architecture.build(of, config.model, CPU)
    return backbone, architecture.conditions(of, config.model, config.sample.batch_size, CPU)
