"""One policy update: micro-batches over (rollout batch x step), accumulated into one optimizer step.

Without a KL term a rollout batch whose advantages at a step are all zero has no gradient there, and is left out. The
divisor stays.
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

from tp_grpo.method import flow
from tp_grpo.method.objectives.grpo import grpo
from tp_grpo.plan import Plan
from tp_grpo.ranks.agreement import MustStop
from tp_grpo.ranks.clock import Clock
from tp_grpo.train.learner import Learner
from tp_grpo.types import LossStats, Rollout, Step, Trajectory, cat, to

Entry = tuple[int, int]  # a rollout batch of the update, and one of its steps


class RatioError(MustStop):
    """Sampling and training do not compute the same velocity."""


class GradientError(MustStop):
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
            self.weights = flow.step_weights(
                sample.kind, self.sigmas, plan.window, noise_level=sample.noise_level
            )
        # The frozen model's step means by rollout and step, as long as the rollout lives; kept if they are used again.
        self._references: weakref.WeakKeyDictionary[Rollout, dict[int, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def step(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], *, fresh: bool
    ) -> dict[str, float]:
        """Descend once on the mean loss of `rollouts` with `advantages` (B, K) each.

        `fresh`: the policy has not moved since they were sampled; the old mean is then the new one, detached, and how
        far the stored means are from it is reported as ratio_dev. An update whose gradient is not finite is left out.
        Raises RatioError, before it descends, when ratio_dev exceeds `train.max_ratio_dev`; GradientError when more
        than `train.max_skipped` updates in a row were left out.
        """
        made: list[LossStats] = []
        deviations: list[Tensor] = []
        total, parts = len(rollouts) * len(self.plan.window), self._parts(advantages)
        begun = 0
        for part in parts:
            for _ in range(begun, part[-1][0] + 1):
                self.boundary()
            begun = part[-1][0] + 1
            with (
                contextlib.nullcontext()
                if part is parts[-1]
                else self.accelerator.no_sync(self.backbone.transformer)
            ):
                stat, deviation = self._micro_batch(rollouts, advantages, part, fresh=fresh)
                self.accelerator.backward(stat.loss * len(part) / total)
            made.append(stat)
            deviations.append(deviation)
        self.learner.runtime.average_gradients(self.learner.parameters)
        ratio_dev = float(self.accelerator.gather(torch.stack(deviations).max()).max())
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters, self.train.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if fresh and (
            finite or not math.isnan(ratio_dev)
        ):  # what is NaN on the way forward is NaN on the way back
            self._check_ratio(ratio_dev)
        if (
            finite or self.accelerator.scaler is not None
        ):  # a loss scaler skips by itself, and learns from it
            self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)
        self.learner.skipped = 0 if finite else self.learner.skipped + 1
        self._check_skipped()
        report = self._means(made, [len(part) / total for part in parts])
        return report | {
            "grad_norm": float(norm),
            "ratio_dev": ratio_dev,
            "skipped": float(not finite),
        }

    def _parts(self, advantages: Sequence[Tensor]) -> list[list[Entry]]:
        """The entries of each micro-batch; of the last rollout batch there is at least one.

        For every rank joins in the gradients' sum, at its last backward pass, and that must come after the last
        boundary, where ranks meet as well.
        """
        entries = [
            (batch, column)
            for batch in range(len(advantages))
            for column in range(len(self.plan.window))
        ]
        # Ranks that hold a share of the weights are asked equally often.
        if self.train.beta == 0 and not self.learner.runtime.shard:
            nonzero = (torch.stack(list(advantages)) != 0).any(1).tolist()
            last = len(advantages) - 1
            kept = [(batch, column) for batch, column in entries if nonzero[batch][column]]
            entries = kept if kept and kept[-1][0] == last else [*kept, (last, 0)]
        size = self.plan.stacked
        return [entries[start : start + size] for start in range(0, len(entries), size)]

    def _means(self, made: Sequence[LossStats], shares: Sequence[float]) -> dict[str, float]:
        """Over all ranks; loss and policy over all entries, the zeros that were not computed among them."""
        stats = torch.stack(
            [torch.stack([getattr(s, name).detach() for name in STATS]) for s in made]
        )
        weight = torch.tensor(shares).to(stats)
        found = weight @ stats
        whole = torch.tensor(
            [1.0 if name in ("loss", "policy") else sum(shares) for name in STATS]
        ).to(stats)
        return dict(
            zip(STATS, self.accelerator.reduce(found / whole, "mean").tolist(), strict=True)
        )

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
        self,
        rollouts: Sequence[Rollout],
        advantages: Sequence[Tensor],
        entries: Sequence[Entry],
        *,
        fresh: bool,
    ) -> tuple[LossStats, Tensor]:
        """The loss of some batches at some steps, in the very layout of sampling if it is one; and max |ratio - 1|."""
        kind, device = self.sample.kind, self.backbone.device

        def stacked(read: Callable[[Trajectory, int], Tensor]) -> Tensor:
            return torch.cat(
                [read(rollouts[batch].trajectory, column).to(device) for batch, column in entries]
            )

        x, x_next = stacked(lambda t, k: t.x[:, k]), stacked(lambda t, k: t.x[:, k + 1])
        stored = stacked(lambda t, k: t.mean[:, k])
        # Sampling overflowed there and the advantage is 0; but 0 x NaN is NaN, in the loss and in the gradient.
        lost = ~(x.isfinite() & x_next.isfinite() & stored.isfinite()).flatten(1).all(1)
        kept = ~lost.reshape(-1, *[1] * (x.ndim - 1))
        x, x_next, stored = (state.where(kept, 0) for state in (x, x_next, stored))
        cond = to(cat([rollouts[batch].cond for batch, _ in entries]), device)
        columns = torch.tensor([k for _, k in entries], device=device).repeat_interleave(
            self.plan.batch_size
        )
        step = self._transition(x, cond, entries)
        ratio = flow.log_ratio(
            kind, x_next, step, step.mean.detach() if fresh else stored
        ).masked_fill(lost, 0)
        divergence = None
        if self.train.beta > 0:
            divergence = flow.kl(step, self._reference(rollouts, entries, x, cond)).masked_fill(
                lost, 0
            )
        stat = grpo(
            ratio,
            torch.cat([advantages[batch][:, column] for batch, column in entries]),
            divergence,
            clip_range=self.train.clip_range,
            beta=self.train.beta,
            weight=self.weights[columns],
        )
        if not fresh:
            return stat, stat.ratio_dev
        with torch.no_grad():
            return stat, flow.log_ratio(kind, x_next, step, stored).masked_fill(
                lost, 0
            ).expm1().abs().max()

    def _reference(
        self, rollouts: Sequence[Rollout], entries: Sequence[Entry], x: Tensor, cond: Any
    ) -> Tensor:
        """The frozen model's means of the steps (rows, *L), computed once where there are more inner epochs."""
        kept = [self._references.setdefault(rollouts[batch], {}) for batch, _ in entries]
        if all(column in own for own, (_, column) in zip(kept, entries, strict=True)):
            return torch.cat(
                [own[column].to(x.device) for own, (_, column) in zip(kept, entries, strict=True)]
            )
        with torch.no_grad(), self.learner.policy.reference():
            mean: Tensor = self._transition(x, cond, entries).mean
        if self.train.inner_epochs > 1:
            for own, (batch, column), part in zip(
                kept, entries, mean.split(self.plan.batch_size), strict=True
            ):
                own[column] = part.to(rollouts[batch].trajectory.mean.device)
        return mean

    def _transition(self, x: Tensor, cond: Any, entries: Sequence[Entry]) -> Step:
        """Of `batch_size` rows an entry; a single one has its step as a number, as the sampler had it."""
        steps: int | Tensor = self.plan.window[entries[0][1]]
        if len(entries) > 1:
            each = torch.tensor(
                [self.plan.window[column] for _, column in entries], device=x.device
            )
            steps = each.repeat_interleave(len(x) // len(entries))
        self.clock.count("evaluations_update", len(x))
        v = self.backbone.velocity(x, self.sigmas[steps], cond, self.sample.guidance_scale)
        return flow.transition(
            self.sample.kind, x, v, self.sigmas, steps, noise_level=self.sample.noise_level
        )
