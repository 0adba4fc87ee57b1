"""One policy update: micro-batches of (rollout batch, column) pairs, accumulated into one step.

The objective says what a micro-batch looks at and what its loss is; a column is a step of the
trajectories, or a time at which the images are noised. Where zero advantages have no gradient, a
rollout batch whose advantages in a column are all zero is left out; the divisor stays.
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

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.method.points import Predictions
from tp_grpo.plan import Plan
from tp_grpo.ranks.clock import Clock
from tp_grpo.settings import Settings
from tp_grpo.train.learner import Learner
from tp_grpo.train.old_policy import OldPolicy
from tp_grpo.train.points import Entry, PointReader
from tp_grpo.types import Loss, MustStop, Rollout, host_copy


class RatioError(MustStop):
    """Sampling and training do not compute the same velocity."""


class GradientError(MustStop):
    """Too many updates in a row had a gradient that is not finite."""


def mean_report(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over an epoch's updates; of ratio_dev the first, and the last as ratio_dev_moved."""
    means = {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
    if "ratio_dev" not in means:
        return means
    first, last = reports[0]["ratio_dev"], reports[-1]["ratio_dev"]
    return means | {"ratio_dev": first, "ratio_dev_moved": last}


class Updater:
    """Makes updates of the learner's policy; `step` is one."""

    def __init__(
        self,
        accelerator: Accelerator,
        learner: Learner,
        plan: Plan,
        config: Settings,
        *,
        boundary: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        """boundary: called by all ranks before each batch; it may raise to leave an update halfway.

        clock: counts the rows of the forward passes, those without a gradient among them.
        """
        self.accelerator, self.learner, self.backbone = accelerator, learner, learner.backbone
        self.sample, self.train, self.boundary = config.sample, config.train, boundary
        self.clock = clock or Clock()
        self.objective = OBJECTIVES[config.objective.name]
        stated = vars(config.train) | vars(config.objective)
        self.step_weight = config.step_weight
        self.options = {name: stated[name] for name in self.objective.options}
        self.lagging = self.options.get(self.objective.lagging, 0) > 0
        self.guidance_scale = config.train.guidance_scale or config.sample.guidance_scale
        # The frozen model's velocities by rollout and column, for a second inner epoch.
        self._references: weakref.WeakKeyDictionary[Rollout, dict[int, Tensor]] = (
            weakref.WeakKeyDictionary()
        )
        self.begin(plan)

    def begin(self, plan: Plan) -> None:
        """The updates that follow are of an epoch with this plan."""
        self.plan = plan
        sigmas = self.backbone.sigmas(plan.steps)
        self.reader = PointReader(plan, sigmas, self.sample, weight=self.step_weight)

    def update(
        self, number: int, rollouts: Sequence[Rollout], advantages: Tensor
    ) -> dict[str, float]:
        """The epoch's update `number`, of its share of this rank's rollouts; see `step`.

        advantages (N, `plan.credited`): of all ranks' samples.
        """
        first = number % self.plan.updates * self.plan.batches_per_update
        part = slice(first, first + self.plan.batches_per_update)
        rows = self.plan.rows(self.learner.runtime.rank)[part]
        mine = [advantages[r.start : r.stop] for r in rows]
        return self.step(rollouts[part], mine, fresh=number == 0)

    def step(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], *, fresh: bool
    ) -> dict[str, float]:
        """Descend once on the mean loss of `rollouts` with `advantages` (images, credited) each.

        fresh: the policy has not moved since they were sampled; the old velocity is then the new
        one, detached. Where sampling stored velocities, the largest deviation of their ratio is
        reported as ratio_dev. An update whose gradient is not finite is skipped.
        Raises RatioError, before it descends, when ratio_dev exceeds `train.max_ratio_dev`;
        GradientError after more than `train.max_skipped` skipped updates in a row.
        """
        losses: list[Loss] = []
        deviations: list[Tensor] = []
        parts = self._parts(advantages)
        advantages = [each.to(self.backbone.device) for each in advantages]
        shares = [len(part) / (len(rollouts) * self.plan.columns) for part in parts]
        passed = 0  # rollout batches whose boundary has been called
        for part, share in zip(parts, shares, strict=True):
            for _ in range(passed, part[-1][0] + 1):
                self.boundary()
            passed = part[-1][0] + 1
            last = part is parts[-1]
            wait = contextlib.nullcontext if last else self._no_sync
            with wait():
                loss, deviation = self._micro_batch(rollouts, advantages, part, fresh=fresh)
                self.accelerator.backward(loss.value * share)
            losses.append(loss)
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
        report = {"grad_norm": float(norm), "skipped": float(not finite)}
        if self.plan.points != "noised":  # sampling kept velocities to compare with
            report["ratio_dev"] = ratio_dev
        return self._means(losses, shares) | report

    def _no_sync(self) -> Any:
        """Inside, DDP does not average the gradients: the last backward pass does."""
        return self.accelerator.no_sync(self.backbone.transformer)

    def _parts(self, advantages: Sequence[Tensor]) -> list[list[Entry]]:
        """The entries of each micro-batch, at least one of them of the last rollout batch.

        Every rank joins in the sum of gradients at its last backward pass, which must come after
        the last boundary, where ranks meet as well.
        """
        batches, columns = range(len(advantages)), range(self.plan.columns)
        entries = [(batch, column) for batch in batches for column in columns]
        # Ranks that hold a share of the weights must make equally many passes.
        silent = self.objective.silent and self.train.beta == 0
        if silent and not self.learner.runtime.shard:
            nonzero = (torch.stack(list(advantages)) != 0).any(1).tolist()
            kept = [(batch, column) for batch, column in entries if nonzero[batch][column]]
            last = batches[-1]
            entries = kept if kept and kept[-1][0] == last else [*kept, (last, 0)]
        size = self.plan.stacked
        return [entries[start : start + size] for start in range(0, len(entries), size)]

    def _means(self, losses: Sequence[Loss], shares: Sequence[float]) -> dict[str, float]:
        """Means over all ranks; of loss and policy over all entries, also those left out as 0."""
        named = [{"loss": loss.value.detach(), **loss.stats} for loss in losses]
        names = list(named[0])
        values = torch.stack([torch.stack([stat[name] for name in names]) for stat in named])
        computed = sum(shares)
        whole = [1.0 if name in ("loss", "policy") else computed for name in names]
        means = torch.tensor(shares).to(values) @ values / torch.tensor(whole).to(values)
        return dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))

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
    ) -> tuple[Loss, Tensor]:
        """The loss of these points, and max |ratio - 1| (0 where sampling kept no velocities)."""
        points, cond, stored = self.reader.read(rollouts, advantages, entries)

        def velocity() -> Tensor:
            self.clock.count("evaluations_update", len(points.x))
            v: Tensor = self.backbone.velocity(points.x, points.sigma, cond, self.guidance_scale)
            return v

        def without_gradient(policy: OldPolicy) -> Tensor | None:
            if policy.is_policy:
                return None
            with torch.no_grad(), policy.holding():
                return velocity()

        learner = self.learner
        old = without_gradient(learner.old) if stored is None else stored
        reference = lagging = None
        if self.train.beta > 0 or self.objective.reference:
            reference = self._reference(rollouts, entries, velocity)
        if self.lagging:
            lagging = old if learner.lagging is learner.old else without_gradient(learner.lagging)
        v = velocity()
        if old is None or (fresh and stored is not None):
            old = v.detach()
        if self.lagging and lagging is None:
            lagging = v.detach()
        predictions = Predictions(v, old, reference, lagging)
        loss = self.objective.loss(points, predictions, **self.options)
        if stored is None:
            return loss, torch.zeros_like(loss.value.detach())
        with torch.no_grad():
            return loss, points.log_ratio(v, stored).expm1().abs().max()

    def _reference(
        self, rollouts: Sequence[Rollout], entries: Sequence[Entry], velocity: Callable[[], Tensor]
    ) -> Tensor:
        """The frozen model's (rows, *L), computed once where there are more inner epochs."""
        caches = [self._references.setdefault(rollouts[batch], {}) for batch, _ in entries]
        places = [(cache, column) for cache, (_, column) in zip(caches, entries, strict=True)]
        if all(column in cache for cache, column in places):
            device = self.backbone.device
            return torch.cat([c[column].to(device, non_blocking=True) for c, column in places])
        with torch.no_grad(), self.learner.policy.reference():
            v = velocity()
        if self.train.inner_epochs > 1:
            for (cache, column), part in zip(places, v.split(self.plan.batch_size), strict=True):
                cache[column] = host_copy(part) if self.sample.store_on_cpu else part
        return v
