"""From the reward ladder to the reward of each SDE step. A new algorithm is a new function here.

The ladder `R` (B, K+1): `R[:, k]` is the reward of the clean image reached by k SDE steps and then the ODE; `R[:, 0]`
is the ODE from the same noise, `R[:, K]` the trajectory itself; any unit, any range. Without branches it is (B, 1).
A NaN entry is a score that never came: the step rewards that need it are NaN, and no turning point rests on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .types import Credit


def terminal(R: Tensor, *, steps: int | None = None) -> Credit:
    """Flow-GRPO (arXiv 2505.05470): every step is given the trajectory's own reward, `R[:, K]`.

    R (B, K+1), or (B, 1) with `steps` = K. The increments are zeros when there is no ladder to take them from.
    Raises ValueError when neither says K, or the two disagree.
    """
    K = R.shape[1] - 1 if steps is None else steps
    if K < 1 or R.shape[1] not in (1, K + 1):
        raise ValueError(
            f"a ladder of shape {tuple(R.shape)} with steps = {steps}: K = {K} needs (B, 1) or (B, {K + 1})"
        )
    reward = R[:, -1:].repeat(1, K)
    increment = R.diff(dim=1) if R.shape[1] > 1 else torch.zeros_like(reward)
    return Credit(reward, increment, torch.zeros_like(reward, dtype=torch.bool))


def incremental(R: Tensor) -> Credit:
    """Every step is given what it changed: `R[:, k+1] - R[:, k]` (the step-level reward of TP-GRPO, arXiv 2602.06422).

    R (B, K+1), K >= 1. Raises ValueError without a ladder.
    """
    increment = _increments(R)
    return Credit(increment, increment, torch.zeros_like(increment, dtype=torch.bool))


def turning_point(R: Tensor, *, constraint: bool = True, balance: bool = True) -> Credit:
    """Increments, with each turning point given its long-term effect, `R[:, K] - R[:, j]` (TP-GRPO, arXiv 2602.06422).

    Step j >= 1 is a turning point when the step before it went against the whole trajectory, `R[:, K] - R[:, 0]`, and
    the step itself goes with it. With `constraint`, what follows the step must also go its way, so that the long-term
    reward exceeds the increment in size and agrees in sign; the last step never does. Step 0, which has no step before
    it, must only pass the constraint or, without it, go with the whole trajectory.

    `balance` keeps as many positive as negative turning points over all of R (the update batch of all ranks), those of
    largest size, where both signs occur; of equal sizes the earlier entry of R stays. The rest fall back to their
    increments; `turning` marks the ones that were kept.

    R (B, K+1), K >= 1. Raises ValueError without a ladder.
    """
    increment = _increments(R)
    aggregate = R[:, -1:] - R[:, :-1]
    turning = _turning(R, increment, constraint)
    if balance:
        turning = _balanced(turning, aggregate)
    return Credit(torch.where(turning, aggregate, increment), increment, turning)


@dataclass(frozen=True)
class Method:
    """A credit function of the ladder, whether it needs one, and the options it takes."""

    credit: Callable[..., Credit]
    branches: bool
    options: frozenset[str] = frozenset()


METHODS = {
    "terminal": Method(terminal, branches=False),
    "incremental": Method(incremental, branches=True),
    "turning_point": Method(turning_point, branches=True, options=frozenset({"constraint", "balance"})),
}


def needs_branches(name: str) -> bool:
    """Whether a method needs the whole ladder, hence branches in sampling. Raises ValueError for an unknown name."""
    return _method(name).branches


def assign(name: str, R: Tensor, *, steps: int, **options: Any) -> Credit:
    """The credit of `steps` = K SDE steps by the method `name`; R (B, K+1), or (B, 1) where no branches are needed.

    Raises ValueError for an unknown name, an option the method does not take, or a ladder of another length.
    """
    method = _method(name)
    if foreign := sorted(options.keys() - method.options):
        raise ValueError(f"credit {name!r} takes {sorted(method.options) or 'no options'}, not {foreign}")
    if not method.branches:
        return method.credit(R, steps=steps, **options)
    if R.shape[1] != steps + 1:
        raise ValueError(f"credit {name!r} of {steps} steps needs a ladder (B, {steps + 1}), got {tuple(R.shape)}")
    return method.credit(R, **options)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown credit {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _increments(R: Tensor) -> Tensor:
    if R.shape[1] < 2:
        raise ValueError(f"a ladder (B, K+1), K >= 1, is needed, got {tuple(R.shape)}: sampled without branches?")
    return R.diff(dim=1)


def _turning(R: Tensor, increment: Tensor, constraint: bool) -> Tensor:
    # sign(0) = 0 and sign(NaN) = NaN: neither is > 0 or < 0, so flat and unknown steps never qualify.
    d, whole, rest = increment.sign(), (R[:, -1:] - R[:, :1]).sign(), (R[:, -1:] - R[:, 1:]).sign()
    lasting = d * rest > 0
    flips = (d[:, :-1] * whole < 0) & (d[:, 1:] * whole > 0)
    if constraint:
        return torch.cat([lasting[:, :1], flips & lasting[:, 1:]], dim=1)
    return torch.cat([d[:, :1] * whole > 0, flips], dim=1)


def _balanced(turning: Tensor, aggregate: Tensor) -> Tensor:
    positive, negative = turning & (aggregate > 0), turning & (aggregate < 0)
    count = int(min(positive.sum(), negative.sum()))
    if count == 0:
        return turning
    neutral = turning & (aggregate == 0)
    return _largest(positive, aggregate, count) | _largest(negative, aggregate, count) | neutral


def _largest(mask: Tensor, aggregate: Tensor, count: int) -> Tensor:
    """The `count` entries of `mask` with the largest |aggregate|."""
    order = aggregate.abs().masked_fill(~mask, -1).flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(mask).flatten()
    kept[order[:count]] = True
    return kept.view_as(mask)
