"""One policy update: micro-batches of (rollout batch, step) pairs, accumulated into one step.

Without a KL term a rollout batch whose advantages at a step are all zero has no gradient there,
and is left out; the divisor stays.
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
from tp_grpo.ranks.clock import Clock
from tp_grpo.settings import SampleSettings, TrainSettings
from tp_grpo.train.learner import Learner
from tp_grpo.types import LossStats, MustStop, Rollout, Step, cat, to

Entry = tuple[int, int]  # a rollout batch of the update, and one of its steps
STATS = ("loss", "policy", "kl", "approx_kl", "clip_high", "clip_low")


class RatioError(MustStop):
    """Sampling and training do not compute the same velocity."""


class GradientError(MustStop):
    """Too many updates in a row had a gradient that is not finite."""


class Updater:
    """Makes updates of the learner's policy; `step` is one."""

    def __init__(
        self,
        accelerator: Accelerator,
        learner: Learner,
        plan: Plan,
        *,
        sample: SampleSettings,
        train: TrainSettings,
        boundary: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        """sample, train: the settings of these names.

        boundary: called before each batch, on all ranks; it may raise to leave an update halfway.
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
        # The frozen model's means by rollout and step, for a second inner epoch.
        self._references: weakref.WeakKeyDictionary[Rollout, dict[int, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def step(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], *, fresh: bool
    ) -> dict[str, float]:
        """Descend once on the mean loss of `rollouts` with `advantages` (B, K) each.

        fresh: the policy has not moved since they were sampled; the old mean is then the new one,
        detached, and the largest deviation of the stored means' ratio is reported as ratio_dev.
        An update whose gradient is not finite is skipped.
        Raises RatioError, before it descends, when ratio_dev exceeds `train.max_ratio_dev`;
        GradientError after more than `train.max_skipped` skipped updates in a row.
        """
        stats: list[LossStats] = []
        deviations: list[Tensor] = []
        parts = self._parts(advantages)
        shares = [len(part) / (len(rollouts) * len(self.plan.window)) for part in parts]
        passed = 0  # rollout batches whose boundary has been called
        for part, share in zip(parts, shares, strict=True):
            for _ in range(passed, part[-1][0] + 1):
                self.boundary()
            passed = part[-1][0] + 1
            last = part is parts[-1]
            wait = contextlib.nullcontext if last else self._no_sync
            with wait():
                stat, deviation = self._micro_batch(rollouts, advantages, part, fresh=fresh)
                self.accelerator.backward(stat.loss * share)
            stats.append(stat)
            deviations.append(deviation)
        self.learner.runtime.average_gradients(self.learner.parameters)
        ratio_dev = float(self.accelerator.gather(torch.stack(deviations).max()).max())
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters, self.train.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        # A NaN in the forward pass gives a NaN gradient too: report that, not the ratio.
        if fresh and (finite or not math.isnan(ratio_dev)):
            self._check_ratio(ratio_dev)
        if finite or self.accelerator.scaler is not None:  # a loss scaler skips by itself
            self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)
        self.learner.skipped = 0 if finite else self.learner.skipped + 1
        self._check_skipped()
        skipped = float(not finite)
        report = {"grad_norm": float(norm), "ratio_dev": ratio_dev, "skipped": skipped}
        return self._means(stats, shares) | report

    def _no_sync(self) -> Any:
        """Inside, DDP does not average the gradients: the last backward pass does."""
        return self.accelerator.no_sync(self.backbone.transformer)

    def _parts(self, advantages: Sequence[Tensor]) -> list[list[Entry]]:
        """The entries of each micro-batch, at least one of them of the last rollout batch.

        Every rank joins in the sum of gradients at its last backward pass, which must come after
        the last boundary, where ranks meet as well.
        """
        batches, columns = range(len(advantages)), range(len(self.plan.window))
        entries = [(batch, column) for batch in batches for column in columns]
        # Ranks that hold a share of the weights must make equally many passes.
        if self.train.beta == 0 and not self.learner.runtime.shard:
            nonzero = (torch.stack(list(advantages)) != 0).any(1).tolist()
            kept = [(batch, column) for batch, column in entries if nonzero[batch][column]]
            last = batches[-1]
            entries = kept if kept and kept[-1][0] == last else [*kept, (last, 0)]
        size = self.plan.stacked
        return [entries[start : start + size] for start in range(0, len(entries), size)]

    def _means(self, stats: Sequence[LossStats], shares: Sequence[float]) -> dict[str, float]:
        """Means over all ranks; of loss and policy over all entries, also those left out as 0."""
        values = torch.stack(
            [torch.stack([getattr(stat, name).detach() for name in STATS]) for stat in stats]
        )
        computed = sum(shares)
        whole = [1.0 if name in ("loss", "policy") else computed for name in STATS]
        means = torch.tensor(shares).to(values) @ values / torch.tensor(whole).to(values)
        return dict(zip(STATS, self.accelerator.reduce(means, "mean").tolist(), strict=True))

    def _check_ratio(self, deviation: float) -> None:
        limit = self.train.max_ratio_dev
        if not deviation <= limit:  # NaN is no agreement either
            raise RatioError(
                f"before the first update the ratio differs from 1 by {deviation:.2g}, more than "
                f"train.max_ratio_dev = {limit:g}: sampling and training do not compute the same "
                "velocity. Likely a low-precision kernel whose result depends on the batch (try "
                "model.dtype = 'fp32' or 'bf16'), or model.compile, which compiles sampling and "
                "training separately (try it empty)"
            )

    def _check_skipped(self) -> None:
        skipped, limit = self.learner.skipped, self.train.max_skipped
        if skipped > limit:
            raise GradientError(
                f"{skipped} updates in a row had a gradient that is NaN or infinite and were "
                f"skipped; train.max_skipped = {limit} allows {limit}. Likely causes: "
                f"train.learning_rate = {self.train.learning_rate:g} is too high and the policy "
                "has diverged (look at grad_norm and approx_kl in metrics.jsonl; return with "
                "--config.checkpoint.resume=FOLDER/checkpoints/epoch-N); fp16 overflows (try "
                "model.dtype = 'bf16' or 'fp32'); or the weights that the run started from hold NaN"
            )

    def _micro_batch(
        self,
        rollouts: Sequence[Rollout],
        advantages: Sequence[Tensor],
        entries: Sequence[Entry],
        *,
        fresh: bool,
    ) -> tuple[LossStats, Tensor]:
        """The loss of these batches and steps, and max |ratio - 1|.

        A single entry has the very shape that sampling had.
        """
        kind, device = self.sample.kind, self.backbone.device

        def stacked(columns: Sequence[Tensor]) -> Tensor:
            return torch.cat([column.to(device) for column in columns])

        x = stacked([rollouts[batch].states[:, k] for batch, k in entries])
        x_next = stacked([rollouts[batch].states[:, k + 1] for batch, k in entries])
        stored = stacked([rollouts[batch].means[:, k] for batch, k in entries])
        # Where sampling overflowed the advantage is 0, but 0 x NaN would be NaN.
        lost = ~(x.isfinite() & x_next.isfinite() & stored.isfinite()).flatten(1).all(1)
        kept = ~lost.reshape(-1, *[1] * (x.ndim - 1))
        x, x_next, stored = (state.where(kept, 0) for state in (x, x_next, stored))
        cond = to(cat([rollouts[batch].cond for batch, _ in entries]), device)
        columns = torch.tensor([k for _, k in entries], device=device)
        step = self._transition(x, cond, entries)
        old = step.mean.detach() if fresh else stored
        divergence = None
        if self.train.beta > 0:
            reference = self._reference(rollouts, entries, x, cond)
            divergence = flow.kl(step, reference).masked_fill(lost, 0)
        stat = grpo(
            flow.log_ratio(kind, x_next, step, old).masked_fill(lost, 0),
            torch.cat([advantages[batch][:, column] for batch, column in entries]),
            divergence,
            clip_range=self.train.clip_range,
            beta=self.train.beta,
            weight=self.weights[columns.repeat_interleave(self.plan.batch_size)],
        )
        if not fresh:
            return stat, stat.ratio_dev
        with torch.no_grad():
            log_ratio = flow.log_ratio(kind, x_next, step, stored).masked_fill(lost, 0)
            return stat, log_ratio.expm1().abs().max()

    def _reference(
        self, rollouts: Sequence[Rollout], entries: Sequence[Entry], x: Tensor, cond: Any
    ) -> Tensor:
        """The frozen model's means (rows, *L), computed once where there are more inner epochs."""
        caches = [self._references.setdefault(rollouts[batch], {}) for batch, _ in entries]
        places = [(cache, column) for cache, (_, column) in zip(caches, entries, strict=True)]
        if all(column in cache for cache, column in places):
            return torch.cat([cache[column].to(x.device) for cache, column in places])
        with torch.no_grad(), self.learner.policy.reference():
            mean: Tensor = self._transition(x, cond, entries).mean
        if self.train.inner_epochs > 1:
            for (cache, column), part in zip(places, mean.split(self.plan.batch_size), strict=True):
                cache[column] = part.to(rollouts[0].means.device)
        return mean

    def _transition(self, x: Tensor, cond: Any, entries: Sequence[Entry]) -> Step:
        """The steps of `batch_size` rows an entry; a single entry has its step as a number."""
        steps: int | Tensor = self.plan.window[entries[0][1]]
        if len(entries) > 1:
            numbers = [self.plan.window[column] for _, column in entries]
            repeats = len(x) // len(entries)
            steps = torch.tensor(numbers, device=x.device).repeat_interleave(repeats)
        self.clock.count("evaluations_update", len(x))
        guidance, noise_level = self.sample.guidance_scale, self.sample.noise_level
        v = self.backbone.velocity(x, self.sigmas[steps], cond, guidance)
        return flow.transition(self.sample.kind, x, v, self.sigmas, steps, noise_level=noise_level)
