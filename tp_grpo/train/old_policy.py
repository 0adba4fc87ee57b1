"""The old policy: the weights that sampled, for objectives that compare with its predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from tp_grpo.models.policy import Policy
from tp_grpo.settings.learning import ObjectiveSettings


class OldPolicy:
    """A second set of the trained parameters.

    After each epoch `old = eta old + (1 - eta) policy`, where eta is 0 for `old_flat` epochs and
    then rises by `old_ramp` each, to `old_max` at most. Without a ramp the old policy is the one
    that the epoch began with, and is copied only where a second update needs it.
    """

    def __init__(self, policy: Policy, objective: ObjectiveSettings, *, copies: bool) -> None:
        """copies: whether an epoch compares with it after the policy has moved."""
        self.policy, self.objective = policy, objective
        self.lags = objective.old_ramp > 0 and objective.old_max > 0
        self.weights: dict[str, Tensor] | None = None
        if copies or self.lags:
            self.weights = {name: p.detach().clone() for name, p in policy.parameters.items()}
        self.is_policy = True  # whether the two are the same now

    def eta(self, epoch: int) -> float:
        """The share of itself that it keeps after `epoch` epochs."""
        o = self.objective
        return min(o.old_ramp * max(0, epoch - o.old_flat), o.old_max)

    def moved(self) -> None:
        """The policy has been updated."""
        self.is_policy = False

    @torch.no_grad()
    def follow(self, epoch: int) -> None:
        """Called when `epoch` epochs are done."""
        eta = self.eta(epoch)
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
        """Take over a checkpoint's, once the policy has its weights; {}: they are the policy's."""
        if self.weights is not None:
            for name, parameter in self.policy.parameters.items():
                self.weights[name].copy_(state.get(name, parameter))
        self.is_policy = not state
