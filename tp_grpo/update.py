"""One policy update: micro-batches over (rollout batch x step), accumulated into one optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
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


class GradientError(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


STATS = ("loss", "policy", "kl", "approx_kl", "clip_high", "clip_low")


class Updater:
    """Holds the optimizer; `step` is one update of the policy."""

    def __init__(
        self,
        accelerator: Accelerator,
        learner: Learner,
        plan: Plan,
        *,
        sample: Any,
        train: Any,
        boundary: Callable[[], None] = lambda: None,
    ) -> None:
        """boundary: called before each batch, on all ranks; the way out of an update in its midst."""
        self.accelerator, self.learner, self.backbone = accelerator, learner, learner.backbone
        self.plan, self.sample, self.train, self.boundary = plan, sample, train, boundary
        self.sigmas = self.backbone.sigmas(plan.steps)
        self.weights = torch.ones(len(plan.window), device=self.backbone.device)
        if train.step_weight == "velocity":
            self.weights = flow.step_weights(sample.kind, self.sigmas, plan.window, noise_level=sample.noise_level)

    def step(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], *, fresh: bool) -> dict[str, float]:
        """Descend once on the mean loss of `rollouts` with `advantages` (B, K) each.

        `fresh`: the policy has not moved since they were sampled; the old mean is then the new one, detached, and how
        far the stored means are from it is reported as ratio_dev. An update whose gradient is not finite is left out.
        Raises RatioError, before it descends, when ratio_dev exceeds `train.max_ratio_dev`; GradientError when more
        than `train.max_skipped` updates in a row were left out.
        """
        stats: list[LossStats] = []
        deviations: list[Tensor] = []
        total = len(rollouts) * len(self.plan.window)
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            self.boundary()
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
        self.learner.skipped = 0 if finite else self.learner.skipped + 1
        self._check_skipped()
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

    def _check_skipped(self) -> None:
        skipped, limit = self.learner.skipped, self.train.max_skipped
        if skipped > limit:
            raise GradientError(
                f"{skipped} updates in a row had a gradient that is NaN or infinite and were left out; "
                f"train.max_skipped = {limit} allows {limit}. Likely causes: train.learning_rate = "
                f"{self.train.learning_rate:g} is too high and the policy has diverged (look at grad_norm and "
                "approx_kl in metrics.jsonl; go back with --config.checkpoint.resume=FOLDER/checkpoints/epoch-N); fp16 "
                "overflows (try model.dtype = 'bf16' or 'fp32'); or the weights that the run started from hold NaN"
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
