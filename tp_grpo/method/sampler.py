r"""The staircase: a stochastic trajectory and the ODE branches that leave it, in one pass.

    sigma  1 . . . . . . . . 0   main:     s steps of the ODE, K SDE steps (*), then the ODE again
    main   >--*--*--*--->---->   branch j: leaves x_j with the very velocity that the SDE step at
    0         \--\--\--->---->             x_j used, and follows the ODE to the end (branch 0 is
    1            \--\--->---->             the ODE baseline)
    2               \--->---->   NFE a sample = T + K (T - s - 1) - K (K - 1) / 2

A `Completion` may leave out branches and steps. Legend: `T` steps, window of `K` SDE steps from
step `s`, `B` samples, `J` completed states, `*L` latent dims. Nothing here knows a model: the
velocity is a callable. Nothing here is differentiated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.completion import Branch, Completion

Velocity = Callable[[Tensor, int | Tensor, Tensor], Tensor]
"""x (R, *L), step index or (R,), the sample of each row (R,) in [0, B) -> v (R, *L), any float.

The samples are in host memory, the rest on the device.
"""


class Sampled(NamedTuple):
    """What `staircase` returns; all in the dtype of its x."""

    states: Tensor  # (B, K+1, *L); states[:, k+1] was drawn from the step at states[:, k]
    velocities: Tensor  # (B, K, *L), of states[:, :-1]
    clean: Tensor  # (B, J, *L), by completed state; the last is the trajectory's own end


@torch.no_grad()
def ode(velocity: Velocity, x: Tensor, sigmas: Tensor, *, start: int = 0) -> Tensor:
    """Follow the ODE from x (B, *L) at `sigmas[start]` to the end of `sigmas` (T+1,)."""
    return _glide(velocity, x, sigmas.to(x), range(start, len(sigmas) - 1))


@torch.no_grad()
def staircase(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    noise: Tensor,
    *,
    completion: Completion,
    kind: str,
    noise_level: float,
    max_rows: int,
    origin: Tensor | None = None,
) -> Sampled:
    """Sample B trajectories (the ODE, an SDE window, the ODE) and complete states of the window.

    x (B, *L): unit noise, the state at `sigmas[0]`.
    sigmas (T+1,): falls to 0.
    noise (B, K, *L): unit noise of the SDE steps.
    completion: the window, the completed states, and the steps that each of them evaluates; of an
        empty window at 0 the completion of x itself.
    kind, noise_level: of the SDE steps, see `flow.transition`.
    max_rows: most branch rows in a call. The main rows always make a call of their own, in the
        shape of training, so that an unchanged policy repeats them bit for bit.
    origin (B,) int64, in host memory: the index of a row with the same x and condition; rows of one
        origin share the completion of state 0. None: nothing is shared.

    All arithmetic is in the dtype of x; the velocity is cast to it. Raises ValueError for a
    schedule or noise of another length, max_rows < 1 or an unknown kind. Source: TP-GRPO, arXiv
    2602.06422; without branches, Flow-GRPO, 2505.05470.
    """
    window, T, solver = completion.window, len(sigmas) - 1, completion.solver
    _check(x, T, noise, completion, max_rows)
    sigmas, noise, rows = sigmas.to(x), noise.to(x), torch.arange(len(x))
    first, here, back = rows, slice(None), slice(None)
    if origin is not None:
        first, inverse = origin.unique(return_inverse=True)
        here, back = first.to(x.device), inverse.to(x.device)

    x = _glide(velocity, x, sigmas, range(window.start))
    states, velocities = [x], []
    branches: list[Branch] = []
    for k, i in enumerate(window):
        v = velocity(x, i, rows).to(x.dtype)
        advance(velocity, branches, sigmas, i, max_rows)
        if k in completion.evaluated:
            owners, start, slope = (first, x[here], v[here]) if k == 0 else (rows, x, v)
            branch = Branch(start, owners, i, completion.evaluated[k], solver)
            branch.follow(slope, sigmas)
            branches.append(branch)
        step = flow.transition(kind, x, v, sigmas, i, noise_level=noise_level)
        x = step.mean + step.std * noise[:, k]
        states.append(x)
        velocities.append(v)

    end = Branch(x, rows, window.stop, completion.evaluated[len(window)], solver)
    if not end.waits_at(window.stop):
        end.follow(v, sigmas)
    for i in range(window.stop, T):
        advance(velocity, branches, sigmas, i, max_rows)
        advance(velocity, [end], sigmas, i, len(x))
    completed = zip(completion.states, [*branches, end], strict=True)
    clean = [branch.x[back] if k == 0 else branch.x for k, branch in completed]
    kept = torch.stack(velocities, 1) if velocities else x.new_empty(len(x), 0, *x.shape[1:])
    return Sampled(torch.stack(states, 1), kept, torch.stack(clean, 1))


def _glide(velocity: Velocity, x: Tensor, sigmas: Tensor, steps: range) -> Tensor:
    """Euler steps of x (B, *L)."""
    rows = torch.arange(len(x))
    for i in steps:
        x = flow.ode_step(x, velocity(x, i, rows).to(x.dtype), sigmas[i], sigmas[i + 1])
    return x


def advance(
    velocity: Velocity, branches: Sequence[Branch], sigmas: Tensor, step: int, max_rows: int
) -> None:
    """The branches that evaluate at this step, stacked, in calls of at most `max_rows` rows."""
    waiting = [branch for branch in branches if branch.waits_at(step)]
    if not waiting:
        return
    x, rows = torch.cat([b.x for b in waiting]), torch.cat([b.rows for b in waiting])
    parts = zip(x.split(max_rows), rows.split(max_rows), strict=True)
    v = torch.cat([velocity(part, step, owners) for part, owners in parts])
    for branch, part in zip(waiting, v.split([len(b.x) for b in waiting]), strict=True):
        branch.follow(part, sigmas)


def _check(x: Tensor, T: int, noise: Tensor, completion: Completion, max_rows: int) -> None:
    if completion.steps != T:
        raise ValueError(f"sigmas have {T} steps, the completion {completion.steps}")
    expected = (len(x), len(completion.window), *x.shape[1:])
    if noise.shape != expected:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: x and the window need {expected}")
    if max_rows < 1:
        raise ValueError(f"max_rows = {max_rows}: at least 1 branch row must fit in a call")
