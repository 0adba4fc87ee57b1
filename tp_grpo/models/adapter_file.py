"""LoRA files of peft, diffusers and kohya as low-rank updates of the transformer's weights."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tp_grpo.models import checkpoint_files, peft_config
from tp_grpo.models.export import PEFT_WEIGHTS, PIPELINE_WEIGHTS
from tp_grpo.models.policy import Policy
from tp_grpo.store.files import expanded

NAME = "start"  # of the adapter while the pipeline holds it
DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight")  # ends of a file's names
UP = ("lora_B.weight", "lora_up.weight", "lora.up.weight")  # DOWN's other factors, in its order
BIAS = ("lora_B.bias", "lora_up.bias", "lora.up.bias")
TEXT = ("text_encoder", "lora_te")  # how the names of a text encoder's part begin
# What diffusers raises for names or shapes that it cannot place.
UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
PREFIX = "base_model.model."  # of peft's names


class Update(NamedTuple):
    """`up @ down` is added to a weight (O, I): down (r, I) and up (O, r), fp32, alpha / r in up."""

    down: Tensor
    up: Tensor


def check(
    field: str,
    path: str,
    pipeline_class: Any,
    transformer: Mapping[str, Any],
    rank: int | None = None,
) -> None:
    """Raises ValueError for what is no adapter of a pipeline with that transformer's config.

    path: of the file, or of its folder; rank: of the LoRA that is to begin with it, None for any.
    Warns of a part for a text encoder, which `read` leaves out.
    """
    file = find(field, path)
    try:
        with safe_open(file, "pt") as held:
            names = list(held.keys())
            keys = [key for key in names if key.endswith(DOWN) and not key.startswith(TEXT)]
            shapes = [held.get_slice(key).get_shape() for key in keys]
            ranks = sorted({shape[0] for shape in shapes if shape})
    except (SafetensorError, OSError) as error:
        if file.is_file():
            checkpoint_files.refuse_pointer(file, field)
        raise ValueError(f"{field} = {path!r} is no adapter's .safetensors: {error}") from error
    if any("dora_scale" in name or "lora_magnitude" in name for name in names):
        raise ValueError(f"{field} = {path!r} is a DoRA, which is not read here")
    if biased := [name for name in names if name.endswith(BIAS)]:
        raise ValueError(f"{field} = {path!r} has biases, which are not read here: {biased[0]}")
    if not ranks:
        raise ValueError(f"{field} = {path!r} holds no LoRA: no name ends in {' or '.join(DOWN)}")
    if lone := _lone(name for name in names if not name.startswith(TEXT)):
        raise ValueError(f"{field} = {path!r} {lone}; fetch or save it again")
    if rank is not None and ranks != [rank]:
        held_ranks = ", ".join(map(str, ranks))
        raise ValueError(
            f"{field} = {path!r} has rank {held_ranks}, the LoRA to be trained lora.rank = {rank}; "
            f"set lora.rank = {ranks[-1]}, or model.adapter, which merges one of any rank"
        )
    with _in_diffusers_layout(file, field) as (copy, _):
        updates = _state(pipeline_class, copy)
    if misfit := _misfit(updates, transformer):
        raise ValueError(f"{field} = {path!r} is of another model: {misfit}")
    if any(name.startswith(TEXT) for name in names):
        warnings.warn(f"{field}: the part for a text encoder is left out", stacklevel=2)


def find(field: str, path: str) -> Path:
    """The adapter's file, which may be named by its folder. Raises ValueError where none is."""
    file = expanded(path)
    if not file.is_dir():
        return file
    names = [name for name in (PEFT_WEIGHTS, PIPELINE_WEIGHTS) if (file / name).is_file()]
    if not names:
        raise ValueError(f"{field} = {path!r}: no {PEFT_WEIGHTS} or {PIPELINE_WEIGHTS} in it")
    return file / names[0]


def _lone(names: Iterable[str]) -> str:
    """The first factor without its other one, in words; empty where all are in pairs."""
    held = set(names)
    for one, other in (*zip(DOWN, UP, strict=True), *zip(UP, DOWN, strict=True)):
        for name in sorted(name for name in held if name.endswith(one)):
            if (wanted := name.removesuffix(one) + other) not in held:
                return f"holds {name}, but lacks {wanted}"
    return ""


def _misfit(updates: Mapping[str, Tensor], transformer: Mapping[str, Any]) -> str:
    """What of them the transformer has no place for, in words; empty where all fit."""
    with torch.device("meta"):
        empty = getattr(diffusers, transformer["_class_name"]).from_config(dict(transformer))
    weights = {f"transformer.{name}": value.shape for name, value in empty.named_parameters()}
    for name, value in updates.items():
        module, _, factor = name.partition(".lora_")
        if factor not in ("A.weight", "B.weight"):
            continue
        shape = weights.get(f"{module}.weight")
        if shape is None:
            return f"it adapts {module}, which this one does not have"
        axis = 1 if factor == "A.weight" else 0  # of the weight (O, I): A is (r, I), B (O, r)
        count = value.shape[axis] if value.ndim > axis else "no"
        if count != shape[axis]:
            side = "inputs" if axis else "outputs"
            return f"its {module} has {count} {side}, this one's {shape[axis]}"
    return ""


def read(pipeline: Any, path: str) -> dict[str, Update]:
    """By module of the pipeline's transformer; the transformer itself stays as it is.

    Raises ValueError for an adapter of another model, or of a kind that is not read.
    """
    file = find("adapter", path)
    with _in_diffusers_layout(file, "adapter") as (copy, scale):
        found = dict(_loaded(pipeline, copy, scale))
        with safe_open(copy, "pt") as held:
            pairs = sum(name.endswith(DOWN) for name in held.keys())  # noqa: SIM118
    if not found or len(found) < pairs:
        raise ValueError(
            f"{file} is of another model: {len(found)} of its {pairs} modules are in this one"
        )
    return found


@contextmanager
def _in_diffusers_layout(file: Path, field: str) -> Iterator[tuple[Path, float]]:
    """A copy of the transformer's part, as diffusers reads it, and the scale of its updates."""
    scale, tensors = 1.0, load_file(file)
    if file.name == PEFT_WEIGHTS:
        scale = peft_config.read(file.with_name(peft_config.CONFIG), field).scale
        tensors = {k.replace(PREFIX, "transformer.", 1): v for k, v in tensors.items()}
    own = {name: value for name, value in tensors.items() if not name.startswith(TEXT)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PIPELINE_WEIGHTS
        save_file(own, copy, metadata=_header(file))
        yield copy, scale


def _state(pipeline: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of a file by diffusers' names. Raises ValueError for another model's."""
    try:
        values = pipeline.lora_state_dict(file.parent, weight_name=file.name)
    except UNFIT as error:
        raise ValueError(f"the adapter is of another model: {error}") from error
    return dict(values[0] if isinstance(values, tuple) else values)


def _loaded(pipeline: Any, file: Path, scale: float) -> Iterator[tuple[str, Update]]:
    """What the pipeline makes of a file; the values are the file's, not rounded to its dtype."""
    values = _state(pipeline, file)
    try:
        try:
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=NAME)
        except UNFIT as error:
            raise ValueError(f"the adapter is of another model: {error}") from error
        for name, module in pipeline.transformer.named_modules():
            if NAME not in getattr(module, "lora_A", ()):
                continue
            rounded = {x: getattr(module, f"lora_{x}")[NAME].weight.detach() for x in "AB"}
            down, up = (
                values.get(f"transformer.{name}.lora_{x}.weight", rounded[x]).float() for x in "AB"
            )
            yield name, Update(down.clone(), up * (module.scaling[NAME] * scale))
    finally:
        pipeline.unload_lora_weights()


def _header(file: Path) -> dict[str, str]:
    """The file's own metadata, in which diffusers keeps the alphas."""
    with safe_open(file, "pt") as held:
        return dict(held.metadata() or {})


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
    names = sorted(name for name in updates if _name(name, "A") not in policy.parameters)
    if names:
        raise ValueError(
            f"lora.init adapts {len(names)} modules that lora.targets leaves out, such as "
            f"{names[0]}; name them in lora.targets, or merge it with model.adapter"
        )
    with torch.no_grad():
        for name, update in updates.items():
            policy.parameters[_name(name, "A")].copy_(update.down)
            policy.parameters[_name(name, "B")].copy_(update.up / scale)


def _name(module: str, factor: str) -> str:
    """Of a policy's parameter."""
    return f"{module}.lora_{factor}.default.weight"
