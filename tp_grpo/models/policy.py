"""The trained part of a transformer: a LoRA adapter (peft) in fp32, or all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn


class Policy:
    """parameters: the trained ones, by name, in a fixed order, in fp32; the others stay frozen."""

    def __init__(
        self,
        transformer: Any,
        *,
        rank: int,
        alpha: float,
        targets: tuple[str, ...],
        kl: bool,
        frozen: Collection[str] = (),
    ) -> None:
        """A LoRA (gaussian A, zero B) on modules whose names end in `targets`; rank 0 trains all.

        kl: every step needs the frozen model; with rank 0 its copy then stays on the device, not
        in host memory. frozen: names of modules that stay as they are.
        Raises ValueError for targets that no module has.
        """
        self.transformer, self.rank = transformer, rank
        self._frozen: dict[str, Tensor] = {}
        if rank:
            _add_lora(transformer, rank, alpha, targets, frozen)
        else:
            self.dtype = transformer.dtype
            where = transformer.device if kl else torch.device("cpu")
            self._frozen = {
                name: p.detach().to(where, copy=True) for name, p in transformer.named_parameters()
            }
            transformer.requires_grad_(True)
            for name in frozen:
                transformer.get_submodule(name).requires_grad_(False)
        self.parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the transformer is the frozen base model."""
        if self.rank:
            self.transformer.disable_adapters()
            try:
                yield
            finally:
                self.transformer.enable_adapters()
            return
        device = self.transformer.device
        with self.holding({name: value.to(device) for name, value in self._frozen.items()}):
            yield

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the parameters hold `values`, of any dtype, without a copy."""
        trained = {name: self.parameters[name].data for name in values}
        try:
            for name, value in values.items():
                self.parameters[name].data = value
            yield
        finally:
            for name, data in trained.items():
                self.parameters[name].data = data


def _add_lora(
    transformer: Any, rank: int, alpha: float, targets: tuple[str, ...], frozen: Collection[str]
) -> None:
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=_modules(transformer, targets, frozen),
    )
    transformer.add_adapter(config)


def _modules(
    transformer: nn.Module, targets: tuple[str, ...], frozen: Collection[str]
) -> list[str]:
    """The targets; in the place of one that ends other names too, the linear layers it names."""
    named = {f".{name}": module for name, module in transformer.named_modules()}
    modules, missing = [], []
    for target in targets:
        hit = {name: m for name, m in named.items() if name.endswith(f".{target}")}
        linear = [name[1:] for name, module in hit.items() if isinstance(module, nn.Linear)]
        linear = [name for name in linear if name not in frozen]
        modules += [target] if len(linear) == len(hit) else linear
        missing += [] if linear else [target]
    if missing:
        listed = ", ".join(missing)
        raise ValueError(f"lora.targets: no module of the transformer is called {listed}")
    return modules
