"""One policy update: micro-batches over (rollout batch x step), accumulated into one optimizer step.

Without a KL term a micro-batch whose advantages are all zero has no gradient, and is not made. The divisor stays.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tp_grpo import flow, loss
from tp_grpo.clock import Clock
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
        clock: Clock | None = None,
    ) -> None:
        """boundary: called before each batch, on all ranks; the way out of an update in its midst.

        clock: counts the rows of the forward passes, the frozen model's among them.
        """
        self.accelerator, self.learner, self.backbone = accelerator, learner, learner.backbone
        self.plan, self.sample, self.train, self.boundary = plan, sample, train, boundary
        self.clock = clock or Clock()
        self.sigmas = self.backbone.sigmas(plan.steps)
        self.weights = torch.ones(len(plan.window), device=self.backbone.device)
        if train.step_weight == "velocity":
            self.weights = flow.step_weights(sample.kind, self.sigmas, plan.window, noise_level=sample.noise_level)
        # The frozen model's step means by rollout and step, as long as the rollout lives; kept if they are used again.
        self._references: weakref.WeakKeyDictionary[Rollout, dict[int, Tensor]] = weakref.WeakKeyDictionary()

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
        parts = self._parts(advantages)
        for batch, rollout in enumerate(rollouts):
            self.boundary()
            for column in parts[batch]:
                last = len(stats) == sum(map(len, parts)) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.backbone.transformer):
                    advantage = advantages[batch][:, column]
                    stat, deviation = self._micro_batch(rollout, advantage, column, fresh=fresh)
                    self.accelerator.backward(stat.loss / total)
                stats.append(stat)
                deviations.append(deviation)
        self.learner.runtime.average_gradients(self.learner.parameters)
        ratio_dev = float(self.accelerator.gather(torch.stack(deviations).max()).max())
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters, self.train.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if fresh and (finite or not math.isnan(ratio_dev)):  # what is NaN on the way forward is NaN on the way back
            self._check_ratio(ratio_dev)
        if finite or self.accelerator.scaler is not None:  # a loss scaler skips by itself, and learns from it
            self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)
        self.learner.skipped = 0 if finite else self.learner.skipped + 1
        self._check_skipped()
        report = self._means(stats, total)
        return report | {"grad_norm": float(norm), "ratio_dev": ratio_dev, "skipped": float(not finite)}

    def _parts(self, advantages: Sequence[Tensor]) -> list[list[int]]:
        """For each batch the columns to compute; of the last one at least one.

        For every rank joins in the gradients' sum, at its last backward pass, and that must come after the last
        boundary, where ranks meet as well.
        """
        columns = list(range(len(self.plan.window)))
        if self.train.beta > 0 or self.learner.runtime.shard:  # ranks that hold a share are asked equally often
            return [columns for _ in advantages]
        nonzero = [mask.tolist() for mask in (torch.stack(list(advantages)) != 0).any(1)]
        parts = [[column for column in columns if mask[column]] for mask in nonzero]
        return [*parts[:-1], parts[-1] or [0]]

    def _means(self, stats: Sequence[LossStats], total: int) -> dict[str, float]:
        """Over all ranks; loss and policy over all micro-batches, the zeros that were not computed among them."""
        made = torch.stack([torch.stack([getattr(s, name).detach() for name in STATS]) for s in stats]).mean(0)
        share = torch.tensor([len(stats) / total if name in ("loss", "policy") else 1 for name in STATS]).to(made)
        return dict(zip(STATS, self.accelerator.reduce(made * share, "mean").tolist(), strict=True))

    def _check_ratio(self, deviation: float) -> None:
        limit = self.train.max_ratio_dev
        if not deviation <= limit:  # NaN is no agreement either
            raise RatioError(
                f"before the first update the ratio differs from 1 by {deviation:.2g}, more than train.max_ratio_dev = "
                f"{limit:g}: sampling and training do not compute the same velocity; likely a low-precision kernel "
                "whose result depends on the batch (try model.dtype = 'fp32' or 'bf16'), or model.compile, which "
                "compiles sampling and training apart (try it empty)"
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
        # Sampling overflowed there and the advantage is 0; but 0 x NaN is NaN, in the loss and in the gradient.
        lost = ~(x.isfinite() & x_next.isfinite() & stored.isfinite()).flatten(1).all(1)
        kept = ~lost.reshape(-1, *[1] * (x.ndim - 1))
        x, x_next, stored = (state.where(kept, 0) for state in (x, x_next, stored))
        cond = to(rollout.cond, self.backbone.device)
        step = self._transition(x, cond, column)
        ratio = flow.log_ratio(kind, x_next, step, step.mean.detach() if fresh else stored).masked_fill(lost, 0)
        divergence = None
        if self.train.beta > 0:
            divergence = flow.kl(step, self._reference(rollout, x, cond, column)).masked_fill(lost, 0)
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
            return stat, flow.log_ratio(kind, x_next, step, stored).masked_fill(lost, 0).expm1().abs().max()

    def _reference(self, rollout: Rollout, x: Tensor, cond: Any, column: int) -> Tensor:
        """The frozen model's mean of the step (B, *L), computed once where there are more inner epochs."""
        kept = self._references.setdefault(rollout, {})
        if column in kept:
            return kept[column].to(x.device)
        with torch.no_grad(), self.learner.policy.reference():
            mean: Tensor = self._transition(x, cond, column).mean
        if self.train.inner_epochs > 1:
            kept[column] = mean.to(rollout.trajectory.mean.device)
        return mean

    def _transition(self, x: Tensor, cond: Any, column: int) -> Any:
        i = self.plan.window[column]
        self.clock.count("evaluations_update", len(x))
        v = self.backbone.velocity(x, self.sigmas[i], cond, self.sample.guidance_scale)
        return flow.transition(self.sample.kind, x, v, self.sigmas, i, noise_level=self.sample.noise_level)
