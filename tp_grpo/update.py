"""One policy update: micro-batches over (rollout batch x step), accumulated into one optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tp_grpo import flow, loss
from tp_grpo.learner import Learner
from tp_grpo.plan import Plan
from tp_grpo.types import LossStats, Rollout, to


class RatioError(RuntimeError):
    """Sampling and training do not compute the same velocity."""


STATS = ("loss", "policy", "kl", "approx_kl", "clip_high", "clip_low")


class Updater:
    """Holds the optimizer; `step` is one update of the policy."""

    def __init__(self, accelerator: Accelerator, learner: Learner, plan: Plan, *, sample: Any, train: Any) -> None:
        self.accelerator, self.learner, self.backbone = accelerator, learner, learner.backbone
        self.plan, self.sample, self.train = plan, sample, train
        self.sigmas = self.backbone.sigmas(plan.steps)
        self.weights = torch.ones(len(plan.window), device=self.backbone.device)
        if train.step_weight == "velocity":
            self.weights = flow.step_weights(sample.kind, self.sigmas, plan.window, noise_level=sample.noise_level)

    def step(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], *, fresh: bool) -> dict[str, float]:
        """Descend once on the mean loss of `rollouts` with `advantages` (B, K) each.

        `fresh`: the policy has not moved since they were sampled; the old mean is then the new one, detached, and how
        far the stored means are from it is reported as ratio_dev. An update whose gradient is not finite is left out.
        Raises RatioError, before it descends, when ratio_dev exceeds `train.max_ratio_dev`.
        """
        stats: list[LossStats] = []
        deviations: list[Tensor] = []
        total = len(rollouts) * len(self.plan.window)
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            for column in range(len(self.plan.window)):
                last = len(stats) == total - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.backbone.transformer):
                    stat, deviation = self._micro_batch(rollout, advantage[:, column], column, fresh=fresh)
                    self.accelerator.backward(stat.loss / total)
                stats.append(stat)
                deviations.append(deviation)
        self.learner.runtime.average_gradients(self.learner.parameters)
        ratio_dev = float(self.accelerator.gather(torch.stack(deviations).max()).max())
        if fresh:
            self._check_ratio(ratio_dev)
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters, self.train.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # a loss scaler skips by itself, and learns from it
            self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)
        means = torch.stack([torch.stack([getattr(s, name).detach() for name in STATS]) for s in stats]).mean(0)
        report = dict(zip(STATS, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        return report | {"grad_norm": float(norm), "ratio_dev": ratio_dev, "skipped": float(not finite)}

    def _check_ratio(self, deviation: float) -> None:
        limit = self.train.max_ratio_dev
        if not deviation <= limit:  # NaN is no agreement either
            raise RatioError(
                f"before the first update the ratio differs from 1 by {deviation:.2g}, more than train.max_ratio_dev = "
                f"{limit:g}: sampling and training do not compute the same velocity; likely a low-precision kernel "
                "whose result depends on the batch (try model.dtype = 'fp32' or 'bf16')"
            )

    def _micro_batch(
        self, rollout: Rollout, advantage: Tensor, column: int, *, fresh: bool
    ) -> tuple[LossStats, Tensor]:
        """The loss of one batch at one step, in the very layout it was sampled in; and max |ratio - 1|."""
        trajectory, kind = rollout.trajectory, self.sample.kind
        states = (trajectory.x[:, column], trajectory.x[:, column + 1], trajectory.mean[:, column])
        x, x_next, stored = (state.to(self.backbone.device) for state in states)
        cond = to(rollout.cond, self.backbone.device)
        step = self._transition(x, cond, column)
        ratio = flow.log_ratio(kind, x_next, step, step.mean.detach() if fresh else stored)
        divergence = None
        if self.train.beta > 0:
            with torch.no_grad(), self.learner.policy.reference():
                reference = self._transition(x, cond, column)
            divergence = flow.kl(step, reference.mean)
        stat = loss.grpo(
            ratio,
            advantage,
            divergence,
            clip_range=self.train.clip_range,
            beta=self.train.beta,
            weight=self.weights[column].expand(len(x)),
        )
        if not fresh:
            return stat, stat.ratio_dev
        with torch.no_grad():
            return stat, flow.log_ratio(kind, x_next, step, stored).expm1().abs().max()

    def _transition(self, x: Tensor, cond: Any, column: int) -> Any:
        i = self.plan.window[column]
        v = self.backbone.velocity(x, self.sigmas[i], cond, self.sample.guidance_scale)
        return flow.transition(self.sample.kind, x, v, self.sigmas, i, noise_level=self.sample.noise_level)
