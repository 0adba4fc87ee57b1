"""LoRA files of peft, diffusers and kohya as low-rank updates of the transformer's weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tp_grpo.models.export import PEFT_WEIGHTS, PIPELINE_WEIGHTS
from tp_grpo.models.policy import Policy

NAME = "start"  # of the adapter while the pipeline holds it
DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight")  # ends of a file's names
PREFIX = "base_model.model."  # of peft's names


class Update(NamedTuple):
    """`up @ down` is added to a weight (O, I): down (r, I) and up (O, r), fp32, alpha / r in up."""

    down: Tensor
    up: Tensor


def check(field: str, path: str, rank: int | None = None) -> Path:
    """The file of an adapter, which may be named by its folder; reads its header.

    rank: of the LoRA that is to begin with it. Raises ValueError for what is no adapter's file, or
    has another rank.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        names = [name for name in (PEFT_WEIGHTS, PIPELINE_WEIGHTS) if (file / name).is_file()]
        if not names:
            raise ValueError(f"{field} = {path!r}: no {PEFT_WEIGHTS} or {PIPELINE_WEIGHTS} in it")
        file = file / names[0]
    try:
        with safe_open(file, "pt") as held:
            keys = [key for key in held.keys() if key.endswith(DOWN)]  # noqa: SIM118
            ranks = sorted({held.get_slice(key).get_shape()[0] for key in keys})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{field} = {path!r} is no adapter's .safetensors: {error}") from error
    if not ranks:
        raise ValueError(f"{field} = {path!r} holds no LoRA: no name ends in {' or '.join(DOWN)}")
    if rank is not None and ranks != [rank]:
        held_ranks = ", ".join(map(str, ranks))
        raise ValueError(
            f"{field} = {path!r} has rank {held_ranks}, the LoRA to be trained lora.rank = {rank}; "
            f"set lora.rank = {ranks[-1]}, or model.adapter, which merges one of any rank"
        )
    return file


def read(pipeline: Any, path: str) -> dict[str, Update]:
    """By module of the pipeline's transformer; the transformer itself stays as it is.

    Raises ValueError for an adapter of another model, or of a kind that is not read.
    """
    file = check("adapter", path)
    scales: dict[str, float] = {}
    source: Any = load_file(file)
    if file.name == PEFT_WEIGHTS:
        scales = _peft_scale(file.with_name("adapter_config.json"))
        source = {k.replace(PREFIX, "transformer.", 1): v for k, v in source.items()}
    if others := sorted({k.split(".")[0] for k in source if k.startswith(("text_enc", "lora_te"))}):
        warnings.warn(f"{file}: its part for the text encoder is left out: {others}", stacklevel=2)
    try:
        pipeline.load_lora_weights(dict(source) if scales else str(file), adapter_name=NAME)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{file} is of another model: {error}") from error
    try:
        found = dict(_updates(pipeline.transformer, scales.get("", 1.0)))
    finally:
        pipeline.unload_lora_weights()
    pairs = sum(
        key.endswith(DOWN) and not key.startswith(("text_enc", "lora_te")) for key in source
    )
    if not found or len(found) < pairs:
        raise ValueError(
            f"{file} is of another model: {len(found)} of its {pairs} modules are in this one"
        )
    return found


def merge(transformer: Any, updates: Mapping[str, Update]) -> None:
    """Add the updates to the weights, in fp32 before they are rounded to their dtype."""
    modules = dict(transformer.named_modules())
    for name, update in updates.items():
        weight = modules[name].weight
        sum_ = weight.data.float() + (update.up @ update.down).to(weight.device)
        weight.data = sum_.to(weight.dtype)


def begin(policy: Policy, updates: Mapping[str, Update], scale: float) -> None:
    """Fill the policy's LoRA, whose scale is alpha / rank; its other modules begin with none.

    Raises ValueError for a module of the updates that is not trained.
    """
    ends = {"lora_A": "down", "lora_B": "up"}
    wanted = {(name, end) for name in updates for end in ends}
    for name, parameter in policy.parameters.items():
        module, _, rest = name.rpartition(".lora_")
        key = module, f"lora_{rest[0]}"
        if key not in wanted:
            continue
        wanted.remove(key)
        value = getattr(updates[module], ends[key[1]])
        with torch.no_grad():
            parameter.copy_(value if key[1] == "lora_A" else value / scale)
    if wanted:
        names = sorted({name for name, _ in wanted})
        raise ValueError(
            f"lora.init adapts {len(names)} modules that lora.targets leaves out, such as "
            f"{names[0]}; name them in lora.targets, or merge it with model.adapter"
        )


def _updates(transformer: Any, scale: float) -> Iterator[tuple[str, Update]]:
    for name, module in transformer.named_modules():
        if NAME in getattr(module, "lora_A", ()):
            down, up = (getattr(module, f"lora_{x}")[NAME].weight.detach().float() for x in "AB")
            yield name, Update(down.clone(), up * (module.scaling[NAME] * scale))


def _peft_scale(file: Path) -> dict[str, float]:
    """{"": scale of the updates}, by a peft config. Raises ValueError for what is not read."""
    try:
        config = LoraConfig(**_known(json.loads(file.read_text())))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    patterns = {"rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "layer_replication"}
    if wrong := sorted(name for name in patterns if getattr(config, name)):
        raise ValueError(f"{file} has {', '.join(wrong)}, which is not read here")
    return {"": config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if name in LoraConfig.__dataclass_fields__
    }
