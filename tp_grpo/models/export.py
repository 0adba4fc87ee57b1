"""The trained part on disk, as peft and stock pipelines read it; read back and compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import save_torch_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tp_grpo.models import checkpoint_files, peft_config
from tp_grpo.models.policy import Policy

PIPELINE_WEIGHTS, PEFT_WEIGHTS = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
FIELD = "--checkpoint"  # of the scripts that load a policy again
TRANSFORMER_WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
UP = "lora_B.weight"  # how peft ends the name of the factor that is zero at first
_PEFT = "base_model.model."  # what peft puts before a wrapped module's names


def save(
    pipeline_class: Any, policy: Policy, values: Mapping[str, Tensor], folder: Path, *, base: str
) -> None:
    """Write a LoRA for peft and `pipeline.load_lora_weights`, or a trained folder `transformer/`.

    The LoRA's alpha is its rank there; the policy's alpha / rank is in the weights.
    values: to write instead of the parameters', by name; base: the checkpoint they were trained on.
    Raises RuntimeError when the files differ from the values.
    """
    if policy.rank:
        _save_lora(pipeline_class, policy.transformer, values, folder, base)
    else:
        _save_transformer(policy, values, folder / "transformer")


def check(folder: Path) -> None:
    """Raises ValueError for a folder that `load` cannot read, before the model's weights load."""
    if (folder / "transformer").is_dir():
        for file in _shards(folder):
            _shapes(file)
    elif (folder / PEFT_WEIGHTS).is_file():
        peft_config.read(folder / peft_config.CONFIG, FIELD)
        _adapted(folder)
    else:
        raise ValueError(
            f"{FIELD}: {folder} holds no trained policy: no {PEFT_WEIGHTS}, no transformer/"
        )


def check_base(folder: Path, transformer: Mapping[str, Any]) -> None:
    """Raises ValueError for a policy of another model, before any weights load.

    transformer: its config; names and shapes are compared on the meta device.
    """
    with torch.device("meta"):
        empty = getattr(diffusers, transformer["_class_name"]).from_config(dict(transformer))
        if (folder / "transformer").is_dir():
            shapes = {n: s for file in _shards(folder) for n, s in _shapes(file).items()}
            values = {name: torch.empty(shape) for name, shape in shapes.items()}
            _fill(dict(empty.named_parameters()), values, folder)
            return
    load(empty, folder)


def load(transformer: Any, folder: Path) -> Policy:
    """The policy that `save` or peft wrote, on the frozen transformer of the same checkpoint.

    Raises ValueError as `check`, and for another model's.
    """
    check(folder)
    if (folder / "transformer").is_dir():
        policy = Policy(transformer, rank=0, alpha=1, targets=(), kl=False)
        values = {k: v for file in _shards(folder) for k, v in load_file(file).items()}
        _fill(policy.parameters, values, folder)
        return policy
    rank, scale = peft_config.read(folder / peft_config.CONFIG, FIELD)
    modules, known = _adapted(folder), dict(transformer.named_modules())
    if foreign := next((name for name in modules if name not in known), None):
        raise ValueError(
            f"{folder} was trained on another model: it adapts {foreign}, which this one lacks"
        )
    policy = Policy(transformer, rank=rank, alpha=scale * rank, targets=tuple(modules), kl=False)
    saved = load_file(folder / PEFT_WEIGHTS)
    keys = {n: _PEFT + n.replace(".default.weight", ".weight") for n in policy.parameters}
    values = {name: saved[key] for name, key in keys.items() if key in saved}
    _fill(policy.parameters, values, folder)
    return policy


def _shapes(file: Path) -> dict[str, list[int]]:
    return checkpoint_files.shapes(file, FIELD)


def _shards(folder: Path) -> list[Path]:
    """The files of a trained transformer."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    if not files:
        raise ValueError(f"{FIELD}: {folder}/transformer holds no .safetensors")
    return files


def _adapted(folder: Path) -> list[str]:
    """The modules that a LoRA of peft adapts.

    Raises ValueError for tensors of another kind, and for a factor without its other one.
    """
    names = sorted(_shapes(folder / PEFT_WEIGHTS))
    modules: dict[str, set[str]] = {}
    for name in names:
        module, _, factor = name.removeprefix(_PEFT).rpartition(".lora_")
        if not module or factor not in ("A.weight", "B.weight"):
            raise ValueError(
                f"{FIELD}: {folder / PEFT_WEIGHTS} holds {name}, which is no LoRA's and is not "
                "read here"
            )
        modules.setdefault(module, set()).add(factor)
    for module, factors in modules.items():
        for factor in {"A.weight", "B.weight"} - factors:
            raise ValueError(
                f"{FIELD}: {folder / PEFT_WEIGHTS} lacks {_PEFT}{module}.lora_{factor}; "
                "copy or export it again"
            )
    return list(modules)


def _fill(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], folder: Path
) -> None:
    for name, parameter in parameters.items():
        if name not in values:
            raise ValueError(
                f"{folder} lacks {name}: it was copied in part, or trained on another model"
            )
        shape = tuple(values[name].shape)
        if shape != tuple(parameter.shape):
            raise ValueError(
                f"{folder} was trained on another model: "
                f"{name} should be {tuple(parameter.shape)}, it has {shape}"
            )
        with torch.no_grad():
            parameter.copy_(values[name])


def _save_lora(
    pipeline_class: Any, transformer: Any, values: Mapping[str, Tensor], folder: Path, base: str
) -> None:
    config = copy.copy(transformer.peft_config["default"])
    # Many tools read the tensors alone and take alpha for the rank: alpha / rank goes into `up`.
    scale, config.lora_alpha = config.lora_alpha / config.r, config.r
    # Under peft's names; embedding layers are never adapted, so peft need not ask the hub for them.
    named = get_peft_model_state_dict(transformer, dict(values), save_embedding_layers=False)
    weights = {
        name: value.detach().cpu().contiguous() * (scale if name.endswith(UP) else 1)
        for name, value in named.items()
    }
    pipeline_class.save_lora_weights(
        folder, transformer_lora_layers=weights, transformer_lora_adapter_metadata=config.to_dict()
    )
    save_file({f"{_PEFT}{name}": value for name, value in weights.items()}, folder / PEFT_WEIGHTS)
    config.base_model_name_or_path = base
    config.save_pretrained(folder)
    for file, prefix in ((PIPELINE_WEIGHTS, "transformer."), (PEFT_WEIGHTS, _PEFT)):
        _compare({prefix + name: value for name, value in weights.items()}, [folder / file])
    if peft_config.read(folder / peft_config.CONFIG, FIELD) != (config.r, 1):
        raise RuntimeError(f"{folder}: the adapter's config did not survive saving")


def _save_transformer(policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
    """Write as `save_pretrained`, which can only write the module's current values."""
    trained = {name: value.detach().to(policy.dtype) for name, value in values.items()}
    state = policy.transformer.state_dict() | trained
    folder.mkdir(parents=True)
    policy.transformer.save_config(folder)
    save_torch_state_dict(state, folder, filename_pattern=TRANSFORMER_WEIGHTS)
    _compare(state, folder.glob("*.safetensors"))


def _compare(expected: Mapping[str, Tensor], paths: Iterable[Path]) -> None:
    """Raise RuntimeError unless the files hold `expected`; one tensor at a time saves memory."""
    missing = dict(expected)
    for path in paths:
        with safe_open(path, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                if name in missing and torch.equal(saved.get_tensor(name), missing[name].cpu()):
                    del missing[name]
    if missing:
        raise RuntimeError(f"{path}: {', '.join(missing)} did not survive saving")
