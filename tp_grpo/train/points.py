"""The points of a training micro-batch: what an objective looks at, taken from the rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.points import Points, Schedule, finite
from tp_grpo.plan import Plan
from tp_grpo.settings.learning import SampleSettings
from tp_grpo.types import NoisedImages, Rollout, SharedStates, Trajectories, cat, to

Entry = tuple[int, int]  # a rollout batch of the update, and one of its columns


class Look(NamedTuple):
    """Points with what they are looked at with."""

    points: Points
    cond: Any  # of each point, on the device
    stored: Tensor | None  # (R, *L), the velocity that sampling used there; None: it used none


class Column(NamedTuple):
    """One column of a rollout; `Points` has the shapes, None where a kind of rollout has none."""

    x: Tensor
    clean: Tensor
    candidates: Tensor | None = None
    stored: Tensor | None = None
    step: Tensor | None = None  # (R,) int64
    sigma: Tensor | None = None  # (R,)
    group: Tensor | None = None


class PointReader:
    """Reads the points of the rollouts of an epoch, whose plan has that epoch's window."""

    def __init__(self, plan: Plan, sigmas: Tensor, sample: SampleSettings, *, weight: str) -> None:
        """weight: of a step, see `train.step_weight`."""
        self.plan, self.device = plan, sigmas.device
        self.schedule = Schedule(sample.kind, sigmas, sample.noise_level)
        self.window = torch.tensor(plan.window, dtype=torch.int64, device=self.device)
        self.weights: Tensor | None = None
        if weight != "uniform":
            self.weights = flow.step_weights(
                sample.kind, sigmas, plan.window, noise_level=sample.noise_level, by=weight
            )

    def read(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], entries: Sequence[Entry]
    ) -> Look:
        """The points of these entries, on the device; advantages: of each rollout, a row an image.

        A single entry has the very shape that sampling had. Where sampling overflowed a target is
        lost: the advantage is 0 there, but 0 x NaN would be NaN, so that its tensors become 0.
        """
        columns = [self._column(rollouts[batch], column) for batch, column in entries]
        x, clean, candidates, stored, steps, sigma, group = (
            self._stacked(parts) for parts in zip(*columns, strict=True)
        )
        assert x is not None
        assert clean is not None
        rows = len(columns[0].x)
        advantage = torch.cat(
            [self._advantage(advantages[batch], column, rows) for batch, column in entries]
        )
        looked_at = clean if clean.shape[1] else None
        kept = finite(x[:, None], stored if stored is None else stored[:, None], candidates)
        if looked_at is not None:
            kept = kept & finite(looked_at)
        kept = kept.expand_as(advantage)
        usable = kept.any(1, keepdim=True)
        alone = len(entries) == 1 and self.plan.points == "trajectories"
        step: Any = self.plan.window[entries[0][1]] if alone else steps
        if group is not None:  # at another time a prompt's images are another group
            entry = torch.arange(len(entries), device=group.device).repeat_interleave(rows)
            group = group + (entry << 32)
        weight = None
        if self.weights is not None and steps is not None:
            weight = self.weights[steps - self.window[0]]
        points = Points(
            x=_where(usable[:, 0], x),
            sigma=self.schedule.sigmas[step] if sigma is None else sigma,
            advantage=advantage,
            weight=weight,
            clean=_where(kept, looked_at),
            candidates=_where(kept, candidates),
            step=step,
            schedule=self.schedule,
            group=group,
            lost=~kept,
        )
        batches = dict.fromkeys(batch for batch, _ in entries)
        conds = {batch: to(rollouts[batch].cond, self.device) for batch in batches}
        cond = cat([conds[batch] for batch, _ in entries])
        return Look(points, cond, _where(usable[:, 0], stored))

    def _column(self, rollout: Rollout, column: int) -> Column:
        if isinstance(rollout, NoisedImages):
            sigma, x = rollout.sigmas[:, column], rollout.states[:, column]
            return Column(x, rollout.clean, sigma=sigma, group=rollout.group)
        if isinstance(rollout, SharedStates):
            candidates, velocity = rollout.candidates, rollout.velocity
            return Column(rollout.state, rollout.clean, candidates, velocity, rollout.step)
        assert isinstance(rollout, Trajectories)
        x, candidates = rollout.states[:, column], rollout.states[:, column + 1, None]
        clean = rollout.clean
        if clean.shape[1]:
            # The first completed state after the step.
            led_to = next(j for j, k in enumerate(self.plan.completion.states) if k > column)
            clean = clean[:, led_to, None]
        step = self.window[column].expand(len(x))
        return Column(x, clean, candidates, rollout.velocities[:, column], step)

    def _advantage(self, advantages: Tensor, column: int, rows: int) -> Tensor:
        """(images, columns) of a rollout -> (R, C) of that column's points."""
        credited = column if advantages.shape[1] > 1 else 0
        return advantages[:, credited].reshape(rows, -1).to(self.device)

    def _stacked(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        ahead = self.device.type != "cpu"
        tensors = [part.to(self.device, non_blocking=ahead) for part in parts if part is not None]
        return torch.cat(tensors) if tensors else None


def _where(kept: Tensor, values: Tensor | None) -> Any:
    """`values` with 0 where not kept, a mask over its leading dims."""
    if values is None:
        return None
    return values.where(kept.reshape(*kept.shape, *[1] * (values.ndim - kept.ndim)), 0)
