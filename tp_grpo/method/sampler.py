r"""The staircase: a stochastic trajectory and the ODE branches that leave it, in one pass over the schedule.

    sigma  1 . . . . . . . . 0      main:      s SDE steps ..... then the ODE
    main   >--*--*--*--->---->      branch j:  leaves x_j, is born from the very velocity that the SDE step at x_j used,
    0         \--\--\--->---->                 and follows the ODE to the end (branch 0 is the ODE baseline)
    1            \--\--->---->
    2               \--->---->      NFE a sample = T + K (T - s - 1) - K (K - 1) / 2

Branches may leave only some states, and take fewer steps (`completion`). Legend: `T` steps, window of `K` SDE steps
from step `s`, `B` samples, `J` completions of each, `*L` latent dims. Nothing here knows a model: the velocity is a
callable. Nothing here is differentiated.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.completion import SOLVERS, Branch
from tp_grpo.types import Trajectory

Velocity = Callable[[Tensor, int, Tensor], Tensor]
"""x (R, *L), step index, the sample each row belongs to (R,) int64 in [0, B) -> v (R, *L), of any float dtype."""


@torch.no_grad()
def ode(velocity: Velocity, x: Tensor, sigmas: Tensor, *, start: int = 0) -> Tensor:
    """Follows the ODE from x (B, *L) at `sigmas[start]` to the end of `sigmas` (T+1,) -> clean x (B, *L)."""
    return _glide(velocity, x, sigmas.to(x), range(start, len(sigmas) - 1))


@torch.no_grad()
def staircase(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    noise: Tensor,
    *,
    window: range,
    kind: str,
    noise_level: float,
    max_rows: int,
    completions: Mapping[int, Sequence[int]] | None = None,
    solver: str = "euler",
    origin: Tensor | None = None,
) -> tuple[Trajectory, Tensor]:
    """Samples B trajectories: the ODE, an SDE window, the ODE; and ODE branches from states of the window.

    x (B, *L): unit noise, the state at `sigmas[0]`; sigmas (T+1,), falling to 0; noise (B, K, *L): unit noise for the
    K steps in `window`, a contiguous range inside [0, T). All arithmetic is in the dtype of x; the velocity is cast to
    it. The main rows always make a call of their own, in the shape that training uses, so that an unchanged policy
    repeats them bit for bit; branch rows are stacked, in calls of at most `max_rows`.

    completions: for each state k in [0, K] that is to be completed, K always, the later steps at which `solver`
    evaluates the velocity; state k < K has its own velocity already, state K may begin with `window.stop`, and goes on
    with the velocity of the last SDE step where it does not. None: every state at every step, the exact ODE.
    origin (B,) int64: a row that starts with the same x and condition; the completion of state 0 is computed once for
    all rows of one origin. None: each its own.

    Returns the trajectory, whose log-probs judge the very states it holds, and the clean latents (B, J, *L), one for
    each completion by ascending k: reached by k SDE steps and then the ODE; the last is the trajectory's own end.
    Raises ValueError for a window outside the schedule, noise of another shape, completions that do not follow the
    schedule, max_rows < 1, or an unknown kind or solver. Source: TP-GRPO, arXiv 2602.06422 (SDE steps completed by the
    ODE); without branches, Flow-GRPO, 2505.05470.
    """
    K, T = len(window), len(sigmas) - 1
    completions = _every_step(window, T) if completions is None else completions
    _check(x, sigmas, noise, window, max_rows, completions, solver)
    sigmas, noise, rows = sigmas.to(x), noise.to(x), torch.arange(len(x), device=x.device)
    own, back = (rows, rows) if origin is None else origin.to(x.device).unique(return_inverse=True)

    x = _glide(velocity, x, sigmas, range(window.start))
    states, means, log_probs = [x], [], []
    branches: list[Branch] = []
    for k, i in enumerate(window):
        v = velocity(x, i, rows).to(x.dtype)
        _advance(velocity, branches, sigmas, i, max_rows)
        if k in completions:
            chosen = own if k == 0 else rows
            branches.append(Branch(x[chosen], chosen, i, completions[k], SOLVERS[solver]))
            branches[-1].follow(v[chosen], sigmas)
        step = flow.transition(kind, x, v, sigmas, i, noise_level=noise_level)
        x = step.mean + step.std * noise[:, k]
        states.append(x)
        means.append(step.mean)
        log_probs.append(flow.log_prob(kind, x, step))

    end = Branch(x, rows, window.stop, completions[K], SOLVERS[solver])
    if not end.waits_at(window.stop):
        end.follow(v, sigmas)
    for i in range(window.stop, T):
        _advance(velocity, branches, sigmas, i, max_rows)
        _advance(velocity, [end], sigmas, i, len(x))
    clean = [
        b.x[back] if k == 0 else b.x
        for k, b in zip(sorted(completions), [*branches, end], strict=True)
    ]
    window_index = torch.tensor(window, device=x.device)
    trajectory = Trajectory(
        torch.stack(states, 1), torch.stack(means, 1), torch.stack(log_probs, 1), window_index
    )
    return trajectory, torch.stack(clean, 1)


def _every_step(window: range, steps: int) -> dict[int, range]:
    births = {k: range(i + 1, steps) for k, i in enumerate(window)}
    return births | {len(window): range(window.stop, steps)}


def _glide(velocity: Velocity, x: Tensor, sigmas: Tensor, steps: range) -> Tensor:
    """Euler steps of x (B, *L)."""
    rows = torch.arange(len(x), device=x.device)
    for i in steps:
        x = flow.ode_step(x, velocity(x, i, rows).to(x.dtype), sigmas[i], sigmas[i + 1])
    return x


def _advance(
    velocity: Velocity, branches: Sequence[Branch], sigmas: Tensor, step: int, max_rows: int
) -> None:
    """The branches that evaluate at this step, stacked, in calls of at most `max_rows`."""
    waiting = [branch for branch in branches if branch.waits_at(step)]
    if not waiting:
        return
    stacked, owners = torch.cat([b.x for b in waiting]), torch.cat([b.rows for b in waiting])
    parts = zip(stacked.split(max_rows), owners.split(max_rows), strict=True)
    v = torch.cat([velocity(part, step, owner) for part, owner in parts])
    for branch, own in zip(waiting, v.split([len(b.x) for b in waiting]), strict=True):
        branch.follow(own, sigmas)


def _check(
    x: Tensor,
    sigmas: Tensor,
    noise: Tensor,
    window: range,
    max_rows: int,
    completions: Mapping[int, Sequence[int]],
    solver: str,
) -> None:
    steps, K = len(sigmas) - 1, len(window)
    if window.step != 1 or not 0 <= window.start < window.stop <= steps:
        raise ValueError(
            f"window = {window}: it must be a contiguous, non-empty part of range(0, {steps})"
        )
    expected = (len(x), K, *x.shape[1:])
    if noise.shape != expected:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: x and the window need {expected}")
    if max_rows < 1:
        raise ValueError(f"max_rows = {max_rows}: at least 1 branch row must fit in a call")
    if solver not in SOLVERS:
        raise ValueError(f"solver = {solver!r} is not one of {', '.join(SOLVERS)}")
    if K not in completions or not completions.keys() <= set(range(K + 1)):
        raise ValueError(
            f"completions of states {sorted(completions)}: some of 0 to {K} are needed, {K} among them"
        )
    for k, own in completions.items():
        if list(own) != sorted(set(own) & set(range(window.start + k + (k < K), steps))):
            raise ValueError(
                f"completions[{k}] = {list(own)}: ascending steps are needed, after the state's, to {steps - 1}"
            )
