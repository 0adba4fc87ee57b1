"""The recipes of the jobs at full size, and the same at a size that a CPU runs in a second."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from ml_collections import ConfigDict

from tp_grpo.cost.probe import Bench
from tp_grpo.models import architecture
from tp_grpo.models.architecture import Architecture
from tp_grpo.settings import Settings

# What differs from the published model of a type: two blocks or one of a hundredth of the width.
TINY: dict[str, dict[str, Any]] = {
    "sd3": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "dual_attention_layers": (0,),
        "pos_embed_max_size": 16,
    },
    "flux": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 1,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
    },
    "klein": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 1,
        "joint_attention_dim": 64,
    },
}
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TINY_FIELDS = {
    "model.dtype": "fp32",  # bf16 takes a CPU many times as long
    "model.height": 64,
    "model.width": 64,
    "model.max_sequence_length": 16,
    "model.decode_batch_size": 2,
    "lora.rank": 4,
    "lora.alpha": 8,
    "sample.steps": 4,
    "sample.window_size": 2,
    "sample.group_size": 4,
    "sample.max_rows": 4,
}


def settings(algorithm: str, recipe: str, *, tiny: bool, **fields: Any) -> Settings:
    """A recipe of config/ALGORITHM.py; fields by dotted name, with __ for the dot.

    A tiny batch is of two rows at most, in a dtype that the CPU has.
    """
    config: ConfigDict = importlib.import_module(f"config.{algorithm}").get_config(recipe)
    chosen = {name.replace("__", "."): value for name, value in fields.items()}
    if tiny:
        chosen = TINY_FIELDS | chosen
        chosen["sample.batch_size"] = min(2, chosen.get("sample.batch_size", 2))
        if config.sample.groups == "shared_state":  # a row is a whole group
            chosen["sample.batch_size"] = 1
    config.update_from_flattened_dict(chosen)
    return Settings.read(config)


def shapes(config: Settings, *, tiny: bool) -> Architecture:
    """The shapes of the model that the config names."""
    published = architecture.read(config.model)
    if not tiny:
        return published
    transformer = {**published.transformer, **TINY[published.type]}
    return replace(published, transformer=transformer, vae={**published.vae, **TINY_VAE})


def bench(algorithm: str, recipe: str, *, tiny: bool, **fields: Any) -> Bench:
    config = settings(algorithm, recipe, tiny=tiny, **fields)
    return Bench(config, shapes(config, tiny=tiny))


def dtypes(*, tiny: bool) -> tuple[str, ...]:
    """Those in which the ratio is measured; fp16 needs a GPU."""
    return ("fp32", "bf16") if tiny else ("bf16", "fp16")


def on_gpu() -> bool:
    return torch.cuda.is_available()
