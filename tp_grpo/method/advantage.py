"""Group-relative advantages: each step reward against those of the same prompt and the same step.

Legend: `N` samples over all ranks, `K` steps; `reward` (N, K) in any unit, NaN where it is unknown; `group_id` (N,) any
integers, in any order. Statistics are taken in float64, where a group of equal float32 rewards has a std of exactly 0.
"""

import torch
from torch import Tensor


def group_normalize(
    reward: Tensor,
    group_id: Tensor,
    *,
    global_std: bool = False,
    eps: float = 1e-4,
    clip: float | None = None,
) -> Tensor:
    """`(r - mean) / (std + eps)` per group and per column -> (N, K), in the dtype of `reward`.

    The mean is the group's, the std the group's or, with `global_std`, that of the whole column; population std. NaN
    rewards are left out of both and get advantage 0, as does the one valid member of a group. `clip` > 0 bounds the
    result to [-clip, clip]. Source: Flow-GRPO, arXiv 2505.05470; for each step, as in TP-GRPO, 2602.06422.
    Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)
    valid = ~reward.isnan()
    r = reward.double()
    deviation = r - _group_mean(r, valid, group)
    if global_std:
        column = torch.zeros_like(group)
        variance = _group_mean((r - _group_mean(r, valid, column)) ** 2, valid, column)
    else:
        variance = _group_mean(deviation**2, valid, group)
    advantage = (deviation / (variance.sqrt() + eps)).masked_fill(~valid, 0)
    return (advantage if clip is None else advantage.clamp(-clip, clip)).to(reward.dtype)


def zero_std_share(reward: Tensor, group_id: Tensor) -> Tensor:
    """Share of the (group, column) pairs that teach nothing, all valid rewards being equal or none there -> 0-dim.

    Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)[:, None].expand_as(reward)
    missing = reward.isnan()
    bounds = reward.new_full((int(group.max()) + 1, reward.shape[1]), float("inf"))
    low = bounds.scatter_reduce(0, group, reward.masked_fill(missing, float("inf")), "amin")
    high = (-bounds).scatter_reduce(0, group, reward.masked_fill(missing, -float("inf")), "amax")
    return (high <= low).to(reward.dtype).mean()


def group_std(reward: Tensor, group_id: Tensor) -> Tensor:
    """Population std within a group and column, averaged over those with a valid reward -> 0-dim float64; NaN if none.

    Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)
    valid, r = ~reward.isnan(), reward.double()
    variance = _group_mean((r - _group_mean(r, valid, group)) ** 2, valid, group)
    first = torch.stack([(group == i).nonzero()[0, 0] for i in group.unique()])
    return variance[first].sqrt().nanmean()


def _groups(reward: Tensor, group_id: Tensor) -> Tensor:
    """Dense group numbers 0 .. n-1 of each row."""
    if reward.ndim != 2 or group_id.shape != reward.shape[:1]:
        raise ValueError(
            f"reward {tuple(reward.shape)} and group_id {tuple(group_id.shape)} must be (N, K) and (N,)"
        )
    return group_id.unique(return_inverse=True)[1]


def _group_mean(values: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Mean (N, K) of the valid values in each row's group; NaN where there are none."""
    both = torch.cat([values.masked_fill(~valid, 0), valid.to(values.dtype)], dim=1)
    total, count = torch.zeros_like(both).index_add(0, group, both)[group].chunk(2, dim=1)
    return total / count
