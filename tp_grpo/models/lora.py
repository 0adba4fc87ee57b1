"""The trainable part: a LoRA adapter (peft) in fp32 on a frozen transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn


def add(transformer: Any, *, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Adds a LoRA with gaussian A and zero B to every module whose name ends in one of `targets`.

    Raises ValueError for targets that no module has.
    """
    names = [name for name, _ in transformer.named_modules()]
    missing = [target for target in targets if not any(name == target or name.endswith("." + target) for name in names)]
    if missing:
        raise ValueError(f"lora.targets: no module of the transformer is called {', '.join(missing)}")
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))
    transformer.add_adapter(config)
    for parameter in parameters(transformer).values():
        parameter.data = parameter.data.float()


def parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in a fixed order."""
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


@contextmanager
def disabled(transformer: Any) -> Iterator[None]:
    """Inside, the transformer is the frozen base model."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def save(pipeline_class: Any, transformer: Any, folder: Path) -> None:
    """`pytorch_lora_weights.safetensors` for the pipeline's `load_lora_weights`; alpha travels in its metadata.

    Raises RuntimeError when the file does not hold what was to be saved.
    """
    config = transformer.peft_config["default"]
    pipeline_class.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    saved = load_file(folder / "pytorch_lora_weights.safetensors")
    expected: dict[str, Tensor] = get_peft_model_state_dict(transformer)
    for name, value in expected.items():
        if not torch.equal(saved[f"transformer.{name}"], value.cpu()):
            raise RuntimeError(f"{folder}: {name} did not survive saving")
