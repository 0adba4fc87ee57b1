r"""Shared-state groups: one trunk to a state, G next states from its one Gaussian, G completions.

    sigma  1 . . . . . . . . 0   The trunk follows the ODE to the state x_s of the group's fork step
    trunk  >-------*---->---->   s. Its step is the Gaussian at x_s, from which G candidates are
                   |\--->---->   drawn; each follows the ODE to the end. NFE a group =
                   \---->---->   s + 1 + G c, where c steps complete a candidate.

The rewards of a group differ by this one action alone, so that their mean is the exact baseline of
the state. Legend: `T` steps, `B` groups, `G` candidates of each, `*L` latent dims.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.completion import Branch, Completion
from tp_grpo.method.sampler import Velocity, advance


class Forked(NamedTuple):
    """What `shared_states` returns; all in the dtype of its x."""

    state: Tensor  # (B, *L)
    velocity: Tensor  # (B, *L), of the state
    candidates: Tensor  # (B, G, *L), the next states
    clean: Tensor  # (B, G, *L), their completions


@torch.no_grad()
def shared_states(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    noise: Tensor,
    *,
    steps: Tensor,
    completion: Completion,
    kind: str,
    noise_level: float,
    max_rows: int,
) -> Forked:
    """Sample B groups that fork at `steps` (B,) int64, in host memory, each in [0, T - 1).

    x (B, *L): unit noise, a group's common start. noise (B, G, *L): of the candidates.
    completion: how candidates are completed; its window and branches are not used.
    max_rows: most candidates in a call. The states make one call of their own, of the very shape
        of training, so that an unchanged policy repeats them bit for bit.

    Arithmetic is in the dtype of x. Raises ValueError for a noise of another shape, steps out of
    range, max_rows < 1 or an unknown kind.
    """
    T = len(sigmas) - 1
    _check(x, T, noise, steps, max_rows)
    sigmas, noise = sigmas.to(x), noise.to(x)
    forks: list[int] = steps.unique().tolist()
    moving = _together([steps > i for i in range(forks[-1])], x.device)
    forked = _together([steps == s for s in forks], x.device)
    steps = steps.to(x.device)
    for i, (rows, here) in enumerate(moving):
        moved = flow.ode_step(x[here], velocity(x[here], i, rows).to(x), sigmas[i], sigmas[i + 1])
        x = x.index_copy(0, here, moved)
    v = velocity(x, steps, torch.arange(len(x))).to(x.dtype)
    step = flow.transition(kind, x, v, sigmas, steps, noise_level=noise_level)
    candidates = step.mean[:, None] + step.std[:, None] * noise
    places = dict(zip(forks, forked, strict=True))
    clean = _complete(velocity, candidates, v, sigmas, places, completion, max_rows)
    return Forked(x, v, candidates, clean)


def _complete(
    velocity: Velocity,
    candidates: Tensor,
    v: Tensor,
    sigmas: Tensor,
    places: dict[int, tuple[Tensor, Tensor]],
    completion: Completion,
    max_rows: int,
) -> Tensor:
    """The candidates (B, G, *L) along the ODE -> their clean images (B, G, *L).

    places: the groups that forked at each step, see `_together`, by ascending steps.
    """
    G, branches = candidates.shape[1], []
    for s, (groups, here) in places.items():
        how, rows = completion.forked(s), groups.repeat_interleave(G)
        branch = Branch(candidates[here].flatten(0, 1), rows, s + 1, how.evaluated[1], how.solver)
        if not branch.waits_at(s + 1):
            branch.follow(v[here].repeat_interleave(G, 0), sigmas)
        branches.append(branch)
    for i in range(min(places) + 1, len(sigmas) - 1):
        advance(velocity, branches, sigmas, i, max_rows)
    clean = torch.empty_like(candidates)
    for branch, (groups, here) in zip(branches, places.values(), strict=True):
        clean[here] = branch.x.unflatten(0, (len(groups), G))
    return clean


def _together(chosen: list[Tensor], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The indices of masks (B,), in host memory and, by a single copy, on the device."""
    rows = [mask.nonzero()[:, 0] for mask in chosen]
    if not rows:
        return []
    return list(
        zip(rows, torch.cat(rows).to(device).split([len(part) for part in rows]), strict=True)
    )


def fork_probabilities(spread: Tensor, window: range, *, least: float = 0.05) -> Tensor:
    """Probabilities (K,) float64 to fork at the window's steps, in proportion to their spreads.

    spread (T,): how much the rewards of a group that was forked there differ, NaN where none was;
    such a step counts as the largest known one. Every step keeps at least `least / K`, so that it
    can be seen to change. Uniform where nothing is known, or no step spreads.
    """
    known = spread[window.start : window.stop].double()
    known = known.nan_to_num(float(known.nan_to_num(0).max()))
    share = known / known.sum() if known.sum() > 0 else torch.ones_like(known) / len(known)
    return (1 - least) * share + least / len(known)


def updated_spread(spread: Tensor, step: Tensor, std: Tensor, *, keep: float = 0.9) -> Tensor:
    """The running spread (T,) float64 after an epoch whose groups forked at `step` (B,).

    std (B,): of each group's rewards, NaN where none is known. An epoch's mean at a step enters
    with weight `1 - keep`, or as it is where nothing was known.
    """
    result = spread.clone()
    for s in step.unique().tolist():
        mean = std[step == s].double().nanmean()
        if not mean.isnan():
            result[s] = mean if spread[s].isnan() else keep * spread[s] + (1 - keep) * mean
    return result


def _check(x: Tensor, T: int, noise: Tensor, steps: Tensor, max_rows: int) -> None:
    if noise.ndim != x.ndim + 1 or (len(noise), *noise.shape[2:]) != tuple(x.shape):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}: groups of x {tuple(x.shape)} need "
            f"({len(x)}, G, {', '.join(map(str, x.shape[1:]))})"
        )
    if steps.shape != x.shape[:1] or int(steps.min()) < 0 or int(steps.max()) > T - 2:
        raise ValueError(
            f"steps {steps.tolist()}: {len(x)} steps from 0 to {T - 2} are needed; the last step "
            "of a schedule ends at sigma 0, where no noise is left to act on"
        )
    if max_rows < 1:
        raise ValueError(f"max_rows = {max_rows}: at least 1 candidate must fit in a call")
