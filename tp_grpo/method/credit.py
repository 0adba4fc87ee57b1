"""From the reward ladder to the reward of each SDE step. A new method is a new function here.

The ladder `R` (B, K+1): `R[:, k]` is the reward of the clean image reached by k SDE steps and then
the ODE; `R[:, 0]` is the ODE from the same noise, `R[:, K]` the trajectory itself; any unit, any
range. Without branches it is (B, 1). A NaN entry is a missing score: the step rewards that need it
are NaN, and no turning point rests on it.

A ladder may leave states out; the functions then see one step between neighbours (`assign`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tp_grpo.method.stats import group_means
from tp_grpo.types import Credit


def terminal(R: Tensor, *, steps: int | None = None) -> Credit:
    """Flow-GRPO (arXiv 2505.05470): every step is given the trajectory's own reward, `R[:, K]`.

    R (B, K+1), or (B, 1) with `steps` = K; the increments are then zeros. Raises ValueError when
    neither says K, or the two disagree.
    """
    K = R.shape[1] - 1 if steps is None else steps
    if K < 1 or R.shape[1] not in (1, K + 1):
        raise ValueError(
            f"a ladder of shape {tuple(R.shape)} with steps = {steps}: K = {K} needs (B, 1) or "
            f"(B, {K + 1})"
        )
    reward = R[:, -1:].repeat(1, K)
    increment = R.diff(dim=1) if R.shape[1] > 1 else torch.zeros_like(reward)
    return Credit(reward, increment, torch.zeros_like(reward, dtype=torch.bool))


def incremental(R: Tensor) -> Credit:
    """Every step is given what it changed, `R[:, k+1] - R[:, k]`: TP-GRPO's step-level reward.

    R (B, K+1), K >= 1. Raises ValueError without a ladder. Source: arXiv 2602.06422.
    """
    increment = _increments(R)
    return Credit(increment, increment, torch.zeros_like(increment, dtype=torch.bool))


def turning_point(R: Tensor, *, constraint: bool = True, balance: bool = True) -> Credit:
    """Increments, but each turning point is given its long-term effect, `R[:, K] - R[:, j]`.

    Step j >= 1 is a turning point when the step before it went against the whole trajectory,
    `R[:, K] - R[:, 0]`, and the step itself goes with it. With `constraint`, what follows the step
    must also go its way, so that the long-term reward exceeds the increment in size and agrees in
    sign; the last step never does. Step 0, which has no step before it, must only pass the
    constraint or, without it, go with the whole trajectory.

    `balance` keeps as many positive as negative turning points over all of R (the update batch of
    all ranks), those of largest size, where both signs occur; of equal sizes the earlier entry of R
    stays. The rest keep their increments; `turning` marks the ones that were kept.

    R (B, K+1), K >= 1. Raises ValueError without a ladder. Source: TP-GRPO, arXiv 2602.06422.
    """
    increment = _increments(R)
    aggregate = R[:, -1:] - R[:, :-1]
    turning = _turning(R, increment, constraint)
    if balance:
        turning = _balanced(turning, aggregate)
    return Credit(torch.where(turning, aggregate, increment), increment, turning)


def value(R: Tensor, group_id: Tensor, *, lam: float = 1.0) -> Credit:
    """The ladder as a value estimate: the reward after a step less the one predicted before it.

    `V_j = b_j R[:, j]` estimates the final reward from the state before step j, `V_K = R[:, K]`,
    and step j is given `sum_l lam^l (V_{j+l+1} - V_{j+l})`: generalised advantage estimation
    (arXiv 1506.02438) on the ladder. lam = 1 is `R[:, K] - b_j R[:, j]`, unbiased for any b_j,
    because R[:, j] is known before step j acts. A smaller lam leaves out, with a bias, the noise of
    the steps that follow. With b = 1 the two ends are the increment and TP-GRPO's long-term reward.
    A group's constant needs no estimate: advantages are taken from the group's mean.

    b_j is the least-squares slope within the OTHER groups (`slopes`), so that no sample tunes its
    own baseline. R (B, K+1), K >= 1; group_id (B,) integers; lam in [0, 1]. A step with a missing
    reward is NaN. Raises ValueError without a ladder, or for a group_id of another shape.
    """
    increment = _increments(R)
    b = slopes(R, group_id, held_out=True).to(R.dtype)
    estimate = torch.cat([b * R[:, :-1], R[:, -1:]], dim=1)
    added = estimate.diff(dim=1)
    reward, ahead = torch.empty_like(added), torch.zeros_like(added[:, 0])
    for j in reversed(range(added.shape[1])):
        ahead = reward[:, j] = added[:, j] + (lam * ahead if lam else 0)
    return Credit(reward, increment, torch.zeros_like(increment, dtype=torch.bool))


def slopes(R: Tensor, group_id: Tensor, *, held_out: bool) -> Tensor:
    """Least-squares slopes `b_j` of R[:, K] on R[:, j] within groups -> (B, K) float64, by row.

    held_out: fitted on all groups but the row's own, else on all together. 0 where nothing can be
    fitted: a single group, or rewards R[:, j] that do not differ within groups. Rows where either
    reward is NaN are left out.
    """
    if group_id.shape != R.shape[:1]:
        raise ValueError(
            f"group_id {tuple(group_id.shape)} must be (B,) for a ladder {tuple(R.shape)}"
        )
    group = group_id.unique(return_inverse=True)[1]
    x, y = R[:, :-1].double(), R[:, -1:].double().expand(-1, R.shape[1] - 1)
    missing = x.isnan() | y.isnan()
    x, y = (_from_group_mean(t.masked_fill(missing, torch.nan), group) for t in (x, y))
    products = _group_sum(torch.cat([x * y, x * x], dim=1), group)
    pooled = products.sum(0) - (products if held_out else 0)
    both, square = pooled.expand_as(products)[group].chunk(2, dim=1)
    return torch.where(square > 1e-12 * (x * x).sum(0), both / square, 0)


@dataclass(frozen=True)
class Method:
    """A credit function, whether it needs branches, its options (`credit.*`), and the groups."""

    credit: Callable[..., Credit]
    branches: bool
    options: frozenset[str] = frozenset()
    groups: bool = False


METHODS = {
    "terminal": Method(terminal, branches=False),
    "incremental": Method(incremental, branches=True),
    "turning_point": Method(
        turning_point, branches=True, options=frozenset({"constraint", "balance"})
    ),
    "value": Method(value, branches=True, options=frozenset({"lam"}), groups=True),
}


def needs_branches(name: str) -> bool:
    """Whether a method needs the whole ladder, hence branches in sampling.

    Raises ValueError for an unknown name.
    """
    return _method(name).branches


def assign(
    name: str,
    R: Tensor,
    *,
    steps: int,
    states: Sequence[int] | None = None,
    group_id: Tensor | None = None,
    **options: Any,
) -> Credit:
    """The credit (B, K) of `steps` = K SDE steps by the method `name`.

    R (B, J): the rewards from `states`, ascending, the last of which is K; None: all of 0 to K, or
        K alone where no branches are needed.
    group_id (B,): for methods that compare groups.
    options: the method's own, see `METHODS`.

    The steps between two states are one step to the method, and each of them is given that step's
    credit. Steps before the first state cannot be told apart: they are given the trajectory's
    reward `R[:, -1]` as in Flow-GRPO, with no increment and no turning point.

    Raises ValueError for an unknown name, an option the method does not take, a ladder of another
    length, or a missing group_id.
    """
    method = _method(name)
    if foreign := sorted(options.keys() - method.options):
        raise ValueError(
            f"credit {name!r} takes {sorted(method.options) or 'no options'}, not {foreign}"
        )
    if not method.branches:
        return method.credit(R, steps=steps, **options)
    at = list(range(steps + 1) if states is None else states)
    if R.shape[1] != len(at) or at[-1] != steps:
        raise ValueError(
            f"credit {name!r} of {steps} steps needs a ladder (B, {len(at)}), got {tuple(R.shape)}"
        )
    if method.groups:
        if group_id is None:
            raise ValueError(f"credit {name!r} compares groups: it needs group_id")
        options["group_id"] = group_id
    return _spread(method.credit(R, **options), R, at)


def _spread(credit: Credit, R: Tensor, states: Sequence[int]) -> Credit:
    """From one column for each pair of neighbouring states to one for each step."""
    lengths = torch.tensor(states, device=R.device).diff()

    def spread(columns: Tensor, before: Tensor) -> Tensor:
        return torch.cat(
            [before.expand(-1, states[0]), columns.repeat_interleave(lengths, dim=1)], dim=1
        )

    zero = torch.zeros_like(R[:, -1:])
    return Credit(
        spread(credit.reward, R[:, -1:]),
        spread(credit.increment, zero),
        spread(credit.turning, zero.bool()),
    )


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown credit {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _increments(R: Tensor) -> Tensor:
    if R.shape[1] < 2:
        raise ValueError(
            f"a ladder (B, K+1), K >= 1, is needed, got {tuple(R.shape)}: sampled without branches?"
        )
    return R.diff(dim=1)


def _group_sum(values: Tensor, group: Tensor) -> Tensor:
    return values.new_zeros(int(group.max()) + 1, values.shape[1]).index_add(0, group, values)


def _from_group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Deviations from the group's mean; 0 for NaN."""
    return (values - group_means(values, group)[group]).masked_fill(values.isnan(), 0)


def _turning(R: Tensor, increment: Tensor, constraint: bool) -> Tensor:
    # sign(0) = 0 and sign(NaN) = NaN are neither > 0 nor < 0: such steps never qualify.
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
