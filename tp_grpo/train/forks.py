"""Where an epoch's shared-state groups fork: drawn the same on every rank, by what was learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tp_grpo.method.shared_state import fork_probabilities, updated_spread
from tp_grpo.plan import Plan
from tp_grpo.settings import Settings
from tp_grpo.train.learner import Learner

FORKS = 6  # key of the draws


class Forks:
    """Draws fork steps, keyed by (seed, epoch, prompt); does nothing for other kinds of groups.

    The running spread of rewards by step is the learner's, so that checkpoints hold it.
    """

    def __init__(self, plan: Plan, learner: Learner, config: Settings) -> None:
        self.learner, self.how, self.seed = learner, config.sample.fork, config.seed
        self.steps = plan.steps
        self.size, self.window = plan.group_size, plan.window
        self.active = plan.points == "shared_state"

    def draw(self, epoch: int, groups: Sequence[int]) -> list[int]:
        """The fork step of each group of the epoch; none where groups share no state."""
        if not self.active:
            return []
        if self.how == "first":
            return [self.window.start] * len(groups)
        share = np.full(len(self.window), 1 / len(self.window))
        if self.how == "spread":
            share = fork_probabilities(self.learner.spread, self.window).numpy()
        keys = [[FORKS, self.seed, epoch, group] for group in groups]
        return [int(np.random.default_rng(key).choice(self.window, p=share)) for key in keys]

    def of_samples(self, forks: Sequence[int]) -> Tensor | None:
        """The fork step of each sample (N,); None where groups share no state."""
        return torch.tensor(forks).repeat_interleave(self.size) if self.active else None

    def learn(self, forks: Sequence[int], reward: Tensor) -> dict[str, float]:
        """Update the spreads by the epoch's rewards (N,); returns the known ones, by step.

        Also the share of the groups that forked at each step, and the mean step.
        """
        if not self.active:
            return {}
        rewards = reward.double().reshape(-1, self.size)
        mean = rewards.nanmean(1, keepdim=True)
        std = ((rewards - mean) ** 2).nanmean(1).sqrt()
        std[rewards.isfinite().sum(1) < 2] = torch.nan  # one reward has no spread
        self.learner.spread = updated_spread(self.learner.spread, torch.tensor(forks), std)
        spreads = {f"spread_{s}": float(self.learner.spread[s]) for s in self.window}
        values = {name: value for name, value in spreads.items() if value == value}
        shares = {f"fork_{s}": forks.count(s) / len(forks) for s in self.window}
        return values | shares | {"fork": sum(forks) / len(forks)}

    def kept(self, forks: Sequence[int]) -> dict[str, Tensor]:
        """What the report shows of an epoch's forks; nothing where groups share no state.

        {"fork": (N,) int64, "fork_sigma": (N,) and "fork_spread": (N,) fp32}: the step at which
        each sample's group forked, its sigma, and the running spread of rewards of that step.
        """
        at = self.of_samples(forks)
        if at is None:
            return {}
        sigmas = self.learner.backbone.sigmas(self.steps).cpu().float()
        return {
            "fork": at,
            "fork_sigma": sigmas[at],
            "fork_spread": self.learner.spread[at].float(),
        }
