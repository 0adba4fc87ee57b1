"""The trained part on disk, as peft and the stock pipelines read it; read back and compared before it counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tp_grpo.models.policy import Policy

PIPELINE_WEIGHTS, PEFT_WEIGHTS = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
TRANSFORMER_WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
_PEFT = "base_model.model."  # what peft puts before a wrapped module's names


def save(
    pipeline_class: Any, policy: Policy, values: Mapping[str, Tensor], folder: Path, *, base: str
) -> None:
    """A LoRA for `pipeline.load_lora_weights(folder)` and `PeftModel.from_pretrained(transformer, folder)`; a fully
    trained transformer, in the dtype it came in, as a diffusers folder `transformer/`.

    values: of the policy's parameters, by name, whatever they hold at present; base: the checkpoint that it belongs to.
    Raises RuntimeError when what was written is not what is in memory.
    """
    if policy.rank:
        _save_lora(pipeline_class, policy.transformer, values, folder, base)
    else:
        _save_transformer(policy, values, folder / "transformer")


def load(transformer: Any, folder: Path) -> Policy:
    """The policy that `save` wrote, put onto the frozen transformer of the same checkpoint.

    Raises ValueError when the folder holds no such policy, or one of another model.
    """
    if (folder / "transformer").is_dir():
        policy = Policy(transformer, rank=0, alpha=1, targets=(), kl=False)
        _fill(policy, _read_all(folder / "transformer"), folder)
        return policy
    if not (folder / PEFT_WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds no trained policy: neither {PEFT_WEIGHTS} nor a folder transformer/"
        )
    config = LoraConfig.from_pretrained(str(folder))
    targets = tuple(sorted(config.target_modules))
    policy = Policy(transformer, rank=config.r, alpha=config.lora_alpha, targets=targets, kl=False)
    saved = load_file(folder / PEFT_WEIGHTS)
    names = {name: name.replace(".default.weight", ".weight") for name in policy.parameters}
    _fill(
        policy,
        {name: saved[_PEFT + short] for name, short in names.items() if _PEFT + short in saved},
        folder,
    )
    return policy


def _fill(policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
    for name, parameter in policy.parameters.items():
        if name not in values or values[name].shape != parameter.shape:
            found = tuple(values[name].shape) if name in values else "nothing"
            raise ValueError(
                f"{folder} was trained on another model: {name} should be {tuple(parameter.shape)}, it has {found}"
            )
        with torch.no_grad():
            parameter.copy_(values[name])


def _read_all(folder: Path) -> dict[str, Tensor]:
    return {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def _save_lora(
    pipeline_class: Any, transformer: Any, values: Mapping[str, Tensor], folder: Path, base: str
) -> None:
    config = transformer.peft_config["default"]
    # Under peft's names; embedding layers are never adapted, nor looked for on the hub.
    named = get_peft_model_state_dict(transformer, dict(values), save_embedding_layers=False)
    weights = {name: value.detach().cpu().contiguous() for name, value in named.items()}
    pipeline_class.save_lora_weights(
        folder, transformer_lora_layers=weights, transformer_lora_adapter_metadata=config.to_dict()
    )
    save_file({f"{_PEFT}{name}": value for name, value in weights.items()}, folder / PEFT_WEIGHTS)
    config.base_model_name_or_path = base
    config.save_pretrained(folder)
    for file, prefix in ((PIPELINE_WEIGHTS, "transformer."), (PEFT_WEIGHTS, _PEFT)):
        _compare({prefix + name: value for name, value in weights.items()}, [folder / file])
    if LoraConfig.from_pretrained(str(folder)).r != config.r:
        raise RuntimeError(f"{folder}: the adapter's config did not survive saving")


def _save_transformer(policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
    """As `save_pretrained` does it, which takes no other values than the module's own."""
    state = policy.transformer.state_dict() | {
        name: value.detach().to(policy.dtype) for name, value in values.items()
    }
    folder.mkdir(parents=True)
    policy.transformer.save_config(folder)
    save_torch_state_dict(state, folder, filename_pattern=TRANSFORMER_WEIGHTS)
    _compare(state, folder.glob("*.safetensors"))


def _compare(expected: Mapping[str, Tensor], paths: Iterable[Path]) -> None:
    """Tensor by tensor: a whole transformer is not held twice."""
    missing = dict(expected)
    for path in paths:
        with safe_open(path, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                if name in missing and torch.equal(saved.get_tensor(name), missing[name].cpu()):
                    del missing[name]
    if missing:
        raise RuntimeError(f"{path}: {', '.join(missing)} did not survive saving")
