"""Points: states of the flow where a loss looks at the model's velocity, and their targets.

Legend: `R` points, `C` targets of each (1, or the candidates of a shared state), `*L` latent dims.
A velocity `v` is (R, *L); what is measured of a point and a target is (R, C), a MEAN over `*L`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.types import Step


@dataclass(frozen=True)
class Schedule:
    """The stochastic steps of a run: their kind, sigmas (T+1,) and noise level, see `flow`."""

    kind: str
    sigmas: Tensor
    noise_level: float


@dataclass(frozen=True, eq=False)
class Predictions:
    """Velocities (R, *L) at the points; None where the objective does not ask for them."""

    policy: Tensor  # of the policy that learns, with its graph
    old: Tensor | None = None  # of the old policy
    reference: Tensor | None = None  # of the frozen model
    lagging: Tensor | None = None  # of a policy that follows from afar


@dataclass(frozen=True, eq=False)
class Points:
    """Each field is None where the points have no such thing.

    A target that is not finite is lost: what is measured of it is 0.
    """

    x: Tensor  # (R, *L)
    sigma: Tensor  # 0-dim or (R,)
    advantage: Tensor  # (R, C)
    weight: Tensor | None = None  # (R,) of mean 1 over the steps of a trajectory
    clean: Tensor | None = None  # (R, C, *L): clean images
    candidates: Tensor | None = None  # (R, C, *L): next states
    step: int | Tensor | None = None  # the step that leaves x: one number or (R,) int64
    schedule: Schedule | None = None
    group: Tensor | None = None  # (R,) int64: of the images of a prompt at one time
    lost: Tensor | None = None  # (R, C) bool

    def transition(self, v: Tensor) -> Step:
        """The Gaussian of the next state where the velocity is v."""
        assert self.schedule is not None
        assert self.step is not None
        s = self.schedule
        return flow.transition(s.kind, self.x, v, s.sigmas, self.step, noise_level=s.noise_level)

    @property
    def dt(self) -> Tensor:
        """`sigma' - sigma` < 0 of the step, 0-dim or (R,)."""
        assert self.schedule is not None
        assert self.step is not None
        return self.schedule.sigmas[self.step + 1] - self.schedule.sigmas[self.step]

    def log_ratio(self, v: Tensor, v_old: Tensor) -> Tensor:
        """New minus old log-prob of the next states -> (R, C), in the scales of `flow.log_prob`."""
        assert self.schedule is not None
        assert self.candidates is not None
        new, old = self.transition(v), self.transition(v_old)
        step = Step(self._each(new.mean), self._each(new.std), self._each(new.kl_scale))
        targets = self.candidates.flatten(0, 1)
        ratio = flow.log_ratio(self.schedule.kind, targets, step, self._each(old.mean))
        return self._measured(ratio)

    def kl(self, v: Tensor, v_reference: Tensor) -> Tensor:
        """KL of the step from the reference's, see `flow.kl` -> (R,)."""
        kl = flow.kl(self.transition(v), self.transition(v_reference).mean)
        return kl if self.lost is None else kl.masked_fill(self.lost.all(1), 0)

    def moved(self, v: Tensor, v_old: Tensor) -> Tensor:
        """`mean((v - v_old)^2)` -> (R,)."""
        square = ((v - v_old) ** 2).flatten(1).mean(1)
        return square if self.lost is None else square.masked_fill(self.lost.all(1), 0)

    def image_error(self, v: Tensor) -> Tensor:
        """`x0hat - x_0` -> (R, C, *L), where `x0hat = x - sigma v` is the predicted clean image."""
        assert self.clean is not None
        predicted = self.x - flow.along(self.x, self.sigma) * v
        error = predicted[:, None] - self.clean
        if self.lost is None:
            return error
        return error.masked_fill(self.lost.reshape(*self.lost.shape, *[1] * (v.ndim - 1)), 0)

    def velocity_error(self, v: Tensor) -> Tensor:
        """`mean((v - (eps - x_0))^2)` -> (R, C): the loss of flow matching.

        `eps - x_0 = (x - x_0) / sigma`, so that the error is `(x_0 - x0hat) / sigma`.
        """
        square = mean(self.image_error(v) ** 2)
        return square / self.sigma.reshape(-1, 1) ** 2

    def target_mean(self, values: Tensor) -> Tensor:
        """The mean of (R, C) over the targets that are not lost -> (R, 1); 1 where all are."""
        if self.lost is None:
            return values.mean(1, keepdim=True)
        known = ~self.lost
        total = (values * known).sum(1, keepdim=True)
        return torch.where(known.any(1, keepdim=True), total / known.sum(1, keepdim=True), 1.0)

    def _each(self, rows: Tensor) -> Tensor:
        """(R, ...) -> (R C, ...), a row for each target; a 0-dim tensor as it is."""
        C = self.advantage.shape[1]
        return rows.repeat_interleave(C, 0) if C > 1 and rows.ndim else rows

    def _measured(self, values: Tensor) -> Tensor:
        values = values.reshape(self.advantage.shape)
        return values if self.lost is None else values.masked_fill(self.lost, 0)


def mean(values: Tensor) -> Tensor:
    """(R, C, *L) -> (R, C)."""
    return values.flatten(2).mean(2)


def scale(error: Tensor) -> Tensor:
    """`max(mean |x0hat - x_0|, 1e-5)` (R, C), detached: divides squared errors (METHODS, w)."""
    return mean(error.detach().abs()).clamp(min=1e-5)


def finite(*tensors: Tensor | None) -> Tensor:
    """Where all of these, (R, C, *L) or (R, 1, *L), are finite -> (R, C) bool."""
    parts = [t.isfinite().flatten(2).all(2) for t in tensors if t is not None]
    return functools.reduce(torch.logical_and, parts)
