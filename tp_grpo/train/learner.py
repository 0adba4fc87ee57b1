"""What learns, and what a checkpoint holds: the trained parameters, their optimizer and average."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models import adapter_file, families, pretrained
from tp_grpo.models.base import Backbone
from tp_grpo.models.policy import Policy
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.settings import Settings, TrainSettings
from tp_grpo.store.checkpoint import Checkpoint
from tp_grpo.train.old_policy import OldPolicy, copies


def check_learner(config: Settings) -> None:
    """Raises ValueError for an optimizer that is not installed, or a `lora.init` that cannot be."""
    if config.lora.init:
        pipeline, model = families.adapter(config.model.type).pipeline_class, config.model
        configs = pretrained.read_configs(model.path, model.revision, pipeline.__name__)
        shapes = pipeline, configs["transformer"]
        adapter_file.check("lora.init", config.lora.init, *shapes, config.lora.rank)
    if config.train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "train.optimizer = 'adamw_8bit' needs bitsandbytes: pip install bitsandbytes"
        )


def make_optimizer(
    train: TrainSettings, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
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

    def __init__(self, runtime: Runtime, backbone: Backbone, config: Settings) -> None:
        self.runtime, self.backbone, self.every = runtime, backbone, config.ema.every
        objective, lora = OBJECTIVES[config.objective.name], config.lora
        begins_with = backbone.begin_with(lora.init) if lora.init else {}
        self.policy = Policy(
            backbone.transformer,
            rank=lora.rank,
            alpha=lora.alpha,
            targets=tuple(lora.targets) or backbone.lora_targets,
            kl=config.train.beta > 0 or objective.reference,
            frozen=backbone.frozen,
        )
        if begins_with:
            adapter_file.begin(self.policy, begins_with, lora.alpha / lora.rank)
        self.parameters = list(self.policy.parameters.values())
        self.ema = EMAModel(self.parameters, decay=config.ema.decay)
        backbone.transformer, self.optimizer = runtime.prepare(
            backbone.transformer, make_optimizer(config.train, self.parameters), self.parameters
        )
        keeps_old, keeps_lagging = copies(config)
        self.old = OldPolicy(
            self.policy, config.objective, copies=keeps_old, lags=not objective.lagging
        )
        self.lagging = self.old  # what AWM pulls towards
        if keeps_lagging:
            self.lagging = OldPolicy(self.policy, config.objective, copies=True)
        self.spread = torch.full((config.sample.steps,), torch.nan, dtype=torch.float64)
        self.evaluations = 0  # of the model, while sampling
        self.updates = 0
        self.skipped = 0  # updates skipped in a row

    def updated(self) -> None:
        """Count an update; every `ema.every`-th is averaged in."""
        self.old.moved()
        self.lagging.moved()
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

    def follow(self) -> None:
        """At the end of an epoch: the old policies follow the policy."""
        for old in {self.old, self.lagging}:
            old.follow(self.updates)

    def snapshot(
        self, epoch: int, settings: dict[str, Any], scores: dict[str, float], tracker: str
    ) -> Checkpoint:
        """Everything needed to resume, copied into host memory; independent of the rank count."""
        scaler = self.runtime.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "updates": self.updates,
            "skipped": self.skipped,
            "evaluations": self.evaluations,
            "spread": self.spread,
            "old": self.old.state(),
            "lagging": {} if self.lagging is self.old else self.lagging.state(),
        }
        weights = _copied(self.policy.parameters)
        return Checkpoint(epoch, weights, _copied(state), settings, scores, tracker)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's weights, states and counts; the optimizer's options stay."""
        state, scaler = checkpoint.state, self.runtime.accelerator.scaler
        with torch.no_grad():
            for name, parameter in self.policy.parameters.items():
                parameter.copy_(checkpoint.weights[name])
        groups = self.optimizer.param_groups
        # A run that starts from another's checkpoint may have a learning rate of its own.
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, kept in zip(self.optimizer.param_groups, options, strict=True):
            group.update(kept)
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.runtime.device)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.updates, self.skipped = state["updates"], state["skipped"]
        # A run from before shared states and the old policy has none of these.
        self.evaluations = state.get("evaluations", 0)
        spread = state.get("spread", self.spread)
        self.spread = spread if spread.shape == self.spread.shape else self.spread
        self.old.restore(state.get("old", {}))
        if self.lagging is not self.old:
            self.lagging.restore(state.get("lagging", {}))

    def export(self, folder: Path, ema: Mapping[str, Any] | None = None) -> None:
        """Write the averaged policy for use outside of this framework.

        ema: a snapshot's; training then changes nothing that is read, and any thread may call this.
        """
        average = self.ema.shadow_params if ema is None else ema["shadow_params"]
        values = dict(zip(self.policy.parameters, average, strict=True))
        self.backbone.export(self.policy, values, folder)


def _copied(value: Any) -> Any:
    """Nested containers with their tensors copied into host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
