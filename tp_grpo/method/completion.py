"""Completions: from states of the SDE window along the ODE to their clean images.

`Completion` says which states are completed and at which steps each evaluates the velocity; a
solver carries a state from one evaluation to the next, and from the last one to sigma = 0. With
every step and `euler` this is the sampler's own ODE. Legend: `T` steps, window of `K` SDE steps,
`R` rows, `*L` latent dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from tp_grpo.method import flow

# Below this sigma v moves the image by sigma times its error: cheap completions do not evaluate it.
SMALL_SIGMA = 0.02
COMPLETIONS = ("euler", "reuse", "multistep", "strided", "tweedie")


@dataclass(frozen=True)
class Completion:
    """Which states of an SDE window are completed, and how.

    steps: T of the schedule. window: the SDE steps, a contiguous range inside [0, T - 1]; range(0)
    where no step is stochastic.
    branches: the states that ODE branches leave, by the number of SDE steps before them, ascending
    in [0, K); None: all of them. State K, the trajectory's own end, is always completed.
    name: `euler` evaluates every step; the others save evaluations below `small`, the first step
    that starts below SMALL_SIGMA (None until `at` is given the schedule): `reuse` only there,
    `multistep` evaluates `evaluations` steps by a second-order solver, `strided` every `stride`-th
    step, `tweedie` takes the clean image that the state itself predicts.

    Raises ValueError for a window, branches or a name that does not fit.
    """

    steps: int
    window: range
    branches: tuple[int, ...] | None = None
    name: str = "euler"
    evaluations: int = 3
    stride: int = 2
    small: int | None = None

    def __post_init__(self) -> None:
        window, K = self.window, len(self.window)
        inside = 0 <= window.start < window.stop <= self.steps
        if window.step != 1 or not (inside or window.start == window.stop == 0):
            raise ValueError(
                f"window = {window}: it must be a contiguous, non-empty part of "
                f"range(0, {self.steps})"
            )
        if self.name not in COMPLETIONS:
            raise ValueError(f"completion {self.name!r} is not one of {', '.join(COMPLETIONS)}")
        if list(self.branches or ()) != sorted(set(self.branches or ()) & set(range(K))):
            raise ValueError(
                f"branches = {self.branches}: ascending states from 0 to {K - 1} are needed"
            )

    def forked(self, step: int) -> Completion:
        """The completion of the states that step `step` leads to, from a shared state."""
        return replace(self, window=range(step, step + 1), branches=())

    def at(self, sigmas: Sequence[float]) -> Completion:
        """The same on a model's schedule (T+1,), which decides the steps that can be saved."""
        return replace(self, small=next(i for i, s in enumerate(sigmas) if s < SMALL_SIGMA))

    @property
    def states(self) -> tuple[int, ...]:
        """The completed states, the columns of the reward ladder; the last is K."""
        K = len(self.window)
        return (*(range(K) if self.branches is None else self.branches), K)

    @property
    def solver(self) -> Solver:
        return adams_bashforth if self.name == "multistep" else euler

    @cached_property
    def evaluated(self) -> dict[int, tuple[int, ...]]:
        """For each state the steps at which its completion still evaluates the velocity.

        State k < K has its own velocity already, from the SDE step that leaves it. State K begins
        with `window.stop`, or not at all where the last SDE step's velocity serves again.
        """
        return {state: self._evaluated(state) for state in self.states}

    @property
    def nfe(self) -> int:
        """Model evaluations a trajectory, the baseline's included.

        T + K (T - s - 1) - K (K - 1) / 2 with `euler` and all branches of a window from step s.
        """
        return self.window.stop + sum(map(len, self.evaluated.values()))

    def _evaluated(self, state: int) -> tuple[int, ...]:
        start, is_end = self.window.start + state, state == len(self.window)
        stop = self.steps if self.small is None else self.small
        if self.name == "reuse" and is_end and start >= stop:
            return ()
        steps = self._visited(start, max(stop, start + 1))
        return tuple(steps if is_end else steps[1:])

    def _visited(self, start: int, stop: int) -> Sequence[int]:
        """The steps from `start` whose velocity is used; `stop`: the first that starts too low."""
        if self.name == "tweedie":
            return [start]
        if self.name == "strided":
            return range(start, stop, self.stride)
        if self.name == "multistep":
            count = min(self.evaluations, stop - start)
            return [start + i * (stop - start) // count for i in range(count)]
        return range(start, self.steps if self.name == "euler" else stop)


class Point(NamedTuple):
    """A state of the ODE and its velocity, (R, *L) each, at a 0-dim sigma."""

    x: Tensor
    v: Tensor
    sigma: Tensor


Solver = Callable[[Point, Tensor, Point | None], Tensor]
"""The point, the sigma to reach, and the point before (None in the first step) -> x there."""


def euler(now: Point, sigma_next: Tensor, before: Point | None) -> Tensor:
    """First order."""
    return flow.ode_step(now.x, now.v, now.sigma, sigma_next)


def adams_bashforth(now: Point, sigma_next: Tensor, before: Point | None) -> Tensor:
    """AB2 in sigma, for steps of unequal length; the first step is Euler's. Second order."""
    if before is None:
        return euler(now, sigma_next, before)
    slope = (now.v - before.v) / (now.sigma - before.sigma)
    v = now.v + slope * (sigma_next - now.sigma) / 2
    return flow.ode_step(now.x, v, now.sigma, sigma_next)


class Branch:
    """Rows on their way to the clean image: where they are, and which steps remain to evaluate."""

    def __init__(
        self, x: Tensor, rows: Tensor, at: int, steps: Sequence[int], solver: Solver
    ) -> None:
        """x (R, *L) at `sigmas[at]`; rows (R,): the sample of each; steps: ascending from `at`."""
        self.x, self.rows, self.at, self.steps, self.solver = x, rows, at, list(steps), solver
        self._before: Point | None = None

    def waits_at(self, step: int) -> bool:
        """Whether its next evaluation is at `step`."""
        return bool(self.steps) and self.steps[0] == step

    def follow(self, v: Tensor, sigmas: Tensor) -> None:
        """With the velocity of its state, go to the next evaluated step, or to the end."""
        if self.waits_at(self.at):
            del self.steps[0]
        target = self.steps[0] if self.steps else len(sigmas) - 1
        now = Point(self.x, v.to(self.x.dtype), sigmas[self.at])
        self.x = self.solver(now, sigmas[target], self._before)
        self._before, self.at = now, target
