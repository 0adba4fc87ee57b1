"""What learns, and so what a checkpoint holds: the policy's parameters, their optimizer and their average."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from tp_grpo.models.base import Backbone
from tp_grpo.models.policy import Policy
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.store.checkpoint import Checkpoint


def check_optimizer(name: str) -> None:
    """Raises ValueError for an optimizer that is not installed."""
    if name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "train.optimizer = 'adamw_8bit' needs bitsandbytes: pip install bitsandbytes"
        )


def make_optimizer(train: Any, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over `parameters` as `config.train` says."""
    options: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": tuple(train.adam_betas),
        "weight_decay": train.weight_decay,
        "eps": train.adam_eps,
    }
    if train.optimizer == "adamw_8bit":
        import bitsandbytes

        quantised: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **options)
        return quantised
    return torch.optim.AdamW(parameters, **options)


class Learner:
    """Prepares the backbone's transformer for training on every rank."""

    def __init__(self, runtime: Runtime, backbone: Backbone, config: Any) -> None:
        self.runtime, self.backbone, self.every = runtime, backbone, config.ema.every
        self.policy = Policy(
            backbone.transformer,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=tuple(config.lora.targets) or backbone.lora_targets,
            kl=config.train.beta > 0,
        )
        self.parameters = list(self.policy.parameters.values())
        self.ema = EMAModel(self.parameters, decay=config.ema.decay)
        backbone.transformer, self.optimizer = runtime.prepare(
            backbone.transformer, make_optimizer(config.train, self.parameters), self.parameters
        )
        self.updates = 0
        self.skipped = 0  # updates in a row that were left out

    def updated(self) -> None:
        """Count an update; every `ema.every`-th is averaged in."""
        self.updates += 1
        if self.updates % self.every == 0:
            self.ema.step(self.parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy is the average; before the first update that is the policy itself."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def snapshot(
        self, epoch: int, settings: dict[str, Any], scores: dict[str, float], tracker: str
    ) -> Checkpoint:
        """All that it takes to go on from here, copied into host memory: it stays as it is while training goes on.

        Nothing in it depends on the number of ranks.
        """
        scaler = self.runtime.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "updates": self.updates,
            "skipped": self.skipped,
        }
        return Checkpoint(
            epoch, _copied(self.policy.parameters), _copied(state), settings, scores, tracker
        )

    def restore(self, found: Checkpoint) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.parameters.items():
                parameter.copy_(found.weights[name])
        own = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(found.state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group.update(
                options
            )  # a run that goes on from another's checkpoint may have its own learning rate
        self.ema.load_state_dict(found.state["ema"])
        self.ema.to(self.runtime.device)
        if self.runtime.accelerator.scaler is not None and found.state["scaler"]:
            self.runtime.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.updates, self.skipped = found.state["updates"], found.state["skipped"]

    def export(self, folder: Path, ema: Mapping[str, Any] | None = None) -> None:
        """The averaged policy, for use outside of this framework.

        ema: a snapshot's; then nothing that training changes is read, and any thread may call this.
        """
        average = self.ema.shadow_params if ema is None else ema["shadow_params"]
        self.backbone.export(
            self.policy, dict(zip(self.policy.parameters, average, strict=True)), folder
        )


def _copied(value: Any) -> Any:
    """Nested containers with their tensors copied into host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
