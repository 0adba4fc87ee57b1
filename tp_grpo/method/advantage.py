"""Group-relative advantages: each step reward against those of the same prompt and the same step.

Legend: `N` samples over all ranks, `K` steps; `reward` (N, K) in any unit, NaN where it is unknown;
`group_id` (N,) any integers, in any order. Statistics are taken in float64, where a group of equal
float32 rewards has a std of exactly 0.
"""

import torch
from torch import Tensor

from tp_grpo.method.stats import group_means


def group_normalize(
    reward: Tensor,
    group_id: Tensor,
    *,
    global_std: bool = False,
    eps: float = 1e-4,
    clip: float | None = None,
) -> Tensor:
    """`(r - mean) / (std + eps)` per group and per column -> (N, K), in the dtype of `reward`.

    The mean is the group's, the population std the group's or, with `global_std`, the column's.
    NaN rewards are left out of both and get advantage 0, as does the one valid member of a group.
    `clip` > 0 bounds the result to [-clip, clip]. Source: Flow-GRPO, arXiv 2505.05470; for each
    step, as in TP-GRPO, 2602.06422. Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)
    std_group = torch.zeros_like(group) if global_std else group
    std = _group_std(reward, std_group)[std_group]
    advantage = (_deviation(reward, group) / (std + eps)).masked_fill(reward.isnan(), 0)
    return (advantage if clip is None else advantage.clamp(-clip, clip)).to(reward.dtype)


def zero_std_share(reward: Tensor, group_id: Tensor) -> Tensor:
    """Share of the (group, column) pairs whose valid rewards are all equal, or none -> 0-dim.

    These teach nothing. Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)[:, None].expand_as(reward)
    missing = reward.isnan()
    bounds = reward.new_full((int(group.max()) + 1, reward.shape[1]), float("inf"))
    low = bounds.scatter_reduce(0, group, reward.masked_fill(missing, float("inf")), "amin")
    high = (-bounds).scatter_reduce(0, group, reward.masked_fill(missing, -float("inf")), "amax")
    return (high <= low).to(reward.dtype).mean()


def group_std(reward: Tensor, group_id: Tensor) -> Tensor:
    """Population std within a group and column, averaged over those with a valid reward.

    -> 0-dim float64; NaN if no reward is valid. Raises ValueError when the shapes do not match.
    """
    return _group_std(reward, _groups(reward, group_id)).nanmean()


def _groups(reward: Tensor, group_id: Tensor) -> Tensor:
    """Dense group numbers 0 .. n-1 of each row."""
    if reward.ndim != 2 or group_id.shape != reward.shape[:1]:
        raise ValueError(
            f"reward {tuple(reward.shape)} and group_id {tuple(group_id.shape)} must be "
            "(N, K) and (N,)"
        )
    return group_id.unique(return_inverse=True)[1]


def _deviation(reward: Tensor, group: Tensor) -> Tensor:
    """Float64 difference (N, K) from the mean of the row's group."""
    r = reward.double()
    return r - group_means(r, group)[group]


def _group_std(reward: Tensor, group: Tensor) -> Tensor:
    """Population std (G, K) of each group and column; NaN where no reward is valid."""
    return group_means(_deviation(reward, group) ** 2, group).sqrt()
