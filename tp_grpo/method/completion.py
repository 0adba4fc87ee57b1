"""How a state reaches the clean image: ODE solvers of one velocity evaluation a step, on any part of the schedule.

A completion evaluates the velocity at some steps of the schedule, and goes from the last of them to sigma = 0 in one
go. With every step and `euler` it is the sampler's own ODE. Legend: `R` rows, `*L` latent dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from tp_grpo.method import flow


class Point(NamedTuple):
    """A state of the ODE and its velocity, (R, *L) each, at a 0-dim sigma."""

    x: Tensor
    v: Tensor
    sigma: Tensor


Solver = Callable[[Point, Tensor, Point | None], Tensor]
"""The point, the sigma to reach, and the point of the step before (None in the first) -> x there."""


def euler(now: Point, sigma_next: Tensor, before: Point | None) -> Tensor:
    """First order."""
    return flow.ode_step(now.x, now.v, now.sigma, sigma_next)


def adams_bashforth(now: Point, sigma_next: Tensor, before: Point | None) -> Tensor:
    """AB2 in sigma, for steps of unequal length; the first step is Euler's. Second order."""
    if before is None:
        return euler(now, sigma_next, before)
    slope = (now.v - before.v) / (now.sigma - before.sigma)
    return flow.ode_step(now.x, now.v + slope * (sigma_next - now.sigma) / 2, now.sigma, sigma_next)


SOLVERS: dict[str, Solver] = {"euler": euler, "adams_bashforth": adams_bashforth}


class Branch:
    """Rows on their way to the clean image: their state at a step of the schedule, and the steps still to evaluate."""

    def __init__(
        self, x: Tensor, rows: Tensor, at: int, steps: Sequence[int], solver: Solver
    ) -> None:
        """x (R, *L) at `sigmas[at]`; rows (R,): the sample each belongs to; `steps`, ascending, from `at` on."""
        self.x, self.rows, self.at, self.steps, self.solver = x, rows, at, list(steps), solver
        self._before: Point | None = None

    def waits_at(self, step: int) -> bool:
        return bool(self.steps) and self.steps[0] == step

    def follow(self, v: Tensor, sigmas: Tensor) -> None:
        """With the velocity of the state, go to the next step that is evaluated, or to the end."""
        if self.waits_at(self.at):
            del self.steps[0]
        target = self.steps[0] if self.steps else len(sigmas) - 1
        now = Point(self.x, v.to(self.x.dtype), sigmas[self.at])
        self.x = self.solver(now, sigmas[target], self._before)
        self._before, self.at = now, target
