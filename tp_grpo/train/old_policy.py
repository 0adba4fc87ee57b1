"""A second set of the trained weights that follows the policy, now and then or from afar.

The old policy samples, and objectives compare with its predictions; AWM pulls towards another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models.policy import Policy
from tp_grpo.settings import Settings
from tp_grpo.settings.learning import ObjectiveSettings


def copies(config: Settings) -> tuple[bool, bool]:
    """Whether a run keeps a copy of the trained weights as its old, and as its lagging policy."""
    objective, lags = OBJECTIVES[config.objective.name], config.objective.lags
    compares = objective.noised and config.train.inner_epochs * config.train.updates_per_epoch > 1
    return compares or (lags and not objective.lagging), lags and bool(objective.lagging)


class OldPolicy:
    """A second set of the trained parameters.

    After each epoch `old = eta old + (1 - eta) policy`, where eta is 0 for `old_flat` updates and
    then rises by `old_ramp` each, to `old_max` at most (DiffusionNFT, arXiv 2509.16117). Without a
    ramp the old policy is the one that the epoch began with, and is copied only where a second
    update needs it.
    """

    def __init__(
        self, policy: Policy, objective: ObjectiveSettings, *, copies: bool, lags: bool = True
    ) -> None:
        """copies: whether an epoch compares with it after the policy has moved.

        lags: whether the settings' schedule is its own; else it is what the epoch began with.
        """
        self.policy, self.objective = policy, objective
        self.lags = lags and objective.lags
        self.weights: dict[str, Tensor] | None = None
        if copies or self.lags:
            self.weights = {name: p.detach().clone() for name, p in policy.parameters.items()}
        self.is_policy = True  # whether the two are the same now

    def eta(self, updates: int) -> float:
        """The share of itself that it keeps after that many updates, in [0, 1]."""
        o = self.objective
        return min(o.old_ramp * max(0, updates - o.old_flat), o.old_max) if self.lags else 0.0

    def moved(self) -> None:
        """The policy has been updated."""
        self.is_policy = False

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Called at the end of an epoch, after that many updates in all."""
        eta = self.eta(updates)
        if self.weights is not None:
            for name, parameter in self.policy.parameters.items():
                if eta == 0:
                    self.weights[name].copy_(parameter)
                else:
                    self.weights[name].lerp_(parameter, 1 - eta)
        self.is_policy = eta == 0

    def holding(self) -> AbstractContextManager[None]:
        """Inside, the policy's parameters are the old ones."""
        if self.is_policy or self.weights is None:
            return contextlib.nullcontext()
        return self.policy.holding(self.weights)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: nothing where the policy's own weights tell it."""
        return {} if self.is_policy or self.weights is None else dict(self.weights)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's, once the policy has its weights; {}: they are the policy's.

        One that does not lag begins as the policy, also from a checkpoint where it lagged.
        """
        state = state if self.lags else {}
        if self.weights is not None:
            for name, parameter in self.policy.parameters.items():
                self.weights[name].copy_(state.get(name, parameter))
        self.is_policy = not state
