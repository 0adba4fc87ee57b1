r"""The staircase: a stochastic trajectory and the ODE branches that leave it, in one pass over the schedule.

    sigma  1 . . . . . . . . 0      main:      s SDE steps ..... then the ODE
    main   >--*--*--*--->---->      branch j:  leaves x_j, is born from the very velocity that the SDE step at x_j used,
    0         \--\--\--->---->                 and follows the ODE to the end (branch 0 is the ODE baseline)
    1            \--\--->---->
    2               \--->---->      NFE a sample = T + K (T - s - 1) - K (K - 1) / 2

Legend: `T` steps, window of `K` SDE steps from step `s`, `B` samples, `*L` latent dims. Nothing here knows a model: the
velocity is a callable. Nothing here is differentiated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import flow
from .types import Trajectory

Velocity = Callable[[Tensor, int, Tensor], Tensor]
"""x (R, *L), step index, the sample each row belongs to (R,) int64 in [0, B) -> v (R, *L), of any float dtype."""


@torch.no_grad()
def ode(velocity: Velocity, x: Tensor, sigmas: Tensor, *, start: int = 0) -> Tensor:
    """Follows the ODE from x (B, *L) at `sigmas[start]` to the end of `sigmas` (T+1,) -> clean x (B, *L)."""
    return _glide(velocity, x, sigmas.to(x), range(start, len(sigmas) - 1), torch.arange(len(x), device=x.device))


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
    branches: bool = True,
    max_rows: int,
) -> tuple[Trajectory, Tensor]:
    """Samples B trajectories: the ODE, an SDE window, the ODE; and the ODE branch from every state of the window.

    x (B, *L): unit noise, the state at `sigmas[0]`; sigmas (T+1,), falling to 0; noise (B, K, *L): unit noise for the
    K steps in `window`, a contiguous range inside [0, T). All arithmetic is in the dtype of x; the velocity is cast to
    it. The main rows always make a call of their own, in the shape that training uses, so that an unchanged policy
    repeats them bit for bit; branch rows are stacked, in calls of at most `max_rows`, or never made.

    Returns the trajectory, whose log-probs judge the very states it holds, and the clean latents (B, K+1, *L), entry k
    reached by k SDE steps and then the ODE; (B, 1, *L), the trajectory's own end, without branches.
    Raises ValueError for a window outside the schedule, noise of another shape, max_rows < 1, or an unknown
    kind. Source: TP-GRPO, arXiv 2602.06422 (SDE steps completed by the ODE); without branches, Flow-GRPO, 2505.05470.
    """
    _check(x, sigmas, noise, window, max_rows)
    sigmas, noise, rows = sigmas.to(x), noise.to(x), torch.arange(len(x), device=x.device)

    x = _glide(velocity, x, sigmas, range(window.start), rows)
    states, means, log_probs = [x], [], []
    born = x[:, None][:, :0]
    for k, i in enumerate(window):
        v = velocity(x, i, rows).to(x.dtype)
        born = _glide_branches(velocity, born, sigmas, range(i, i + 1), rows, max_rows)
        if branches:
            born = torch.cat([born, flow.ode_step(x, v, sigmas[i], sigmas[i + 1])[:, None]], dim=1)
        step = flow.transition(kind, x, v, sigmas, i, noise_level=noise_level)
        x = step.mean + step.std * noise[:, k]
        states.append(x)
        means.append(step.mean)
        log_probs.append(flow.log_prob(kind, x, step))

    rest = range(window.stop, len(sigmas) - 1)
    born = _glide_branches(velocity, born, sigmas, rest, rows, max_rows)
    clean = torch.cat([born, _glide(velocity, x, sigmas, rest, rows)[:, None]], dim=1)
    step_index = torch.arange(window.start, window.stop, device=x.device)
    return Trajectory(torch.stack(states, 1), torch.stack(means, 1), torch.stack(log_probs, 1), step_index), clean


def _glide(velocity: Velocity, x: Tensor, sigmas: Tensor, steps: range, rows: Tensor) -> Tensor:
    """ODE steps of x (R, *L); `rows` (R,) says which sample each row belongs to."""
    for i in steps:
        x = flow.ode_step(x, velocity(x, i, rows).to(x.dtype), sigmas[i], sigmas[i + 1])
    return x


def _glide_branches(
    velocity: Velocity, born: Tensor, sigmas: Tensor, steps: range, rows: Tensor, max_rows: int
) -> Tensor:
    """ODE steps of all branches (B, j, *L), stacked and split in calls of at most `max_rows`."""
    if born.shape[1] == 0:
        return born
    stacked, owner = born.flatten(0, 1), rows.repeat_interleave(born.shape[1])
    parts = zip(stacked.split(max_rows), owner.split(max_rows), strict=True)
    return torch.cat([_glide(velocity, part, sigmas, steps, own) for part, own in parts]).unflatten(0, born.shape[:2])


def _check(x: Tensor, sigmas: Tensor, noise: Tensor, window: range, max_rows: int) -> None:
    steps = len(sigmas) - 1
    if window.step != 1 or not 0 <= window.start < window.stop <= steps:
        raise ValueError(f"window = {window}: it must be a contiguous, non-empty part of range(0, {steps})")
    expected = (len(x), len(window), *x.shape[1:])
    if noise.shape != expected:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: x and the window need {expected}")
    if max_rows < 1:
        raise ValueError(f"max_rows = {max_rows}: at least 1 branch row must fit in a call")
