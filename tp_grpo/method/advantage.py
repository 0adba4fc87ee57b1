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
    std_id: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-4,
    clip: float | None = None,
) -> Tensor:
    """`(r - mean) / (std + eps)` per group and per column -> (N, K), in the dtype of `reward`.

    The mean is the group's, the population std the group's or, with `global_std`, the column's. If
    `std_id` (N,) is given too, it is that of the deviations from group means among the rows with
    the same id. With `scale` the result is instead `scale (r - mean)`. NaN rewards are left out and
    get advantage 0, as does the one valid member of a group. `clip` > 0 bounds the result to
    [-clip, clip]. Source: Flow-GRPO, arXiv 2505.05470; for each step, as in TP-GRPO, 2602.06422.
    Raises ValueError when the shapes do not match.
    """
    group = _groups(reward, group_id)
    deviation = _deviation(reward, group)
    if scale is not None:
        deviation = scale * deviation
    elif global_std and std_id is not None:
        std_group = _groups(reward, std_id)
        pooled = group_means(deviation**2, std_group).sqrt()
        deviation = deviation / (pooled[std_group] + eps)
    else:
        std_group = torch.zeros_like(group) if global_std else group
        deviation = deviation / (_group_std(reward, std_group)[std_group] + eps)
    advantage = deviation.masked_fill(reward.isnan(), 0)
    return (advantage if clip is None else advantage.clamp(-clip, clip)).to(reward.dtype)


def whiten(advantage: Tensor, known: Tensor, *, eps: float = 1e-4) -> Tensor:
    """`(a - mean) / (std + eps)` over the entries of (N, K) that are known (N, K); 0 elsewhere.

    Source: GDPO, arXiv 2601.05242, after the rewards' advantages have been summed.
    """
    values = advantage.double()[known]
    whole = (advantage.double() - values.mean()) / (values.std(unbiased=False) + eps)
    return whole.masked_fill(~known, 0).to(advantage.dtype)


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
