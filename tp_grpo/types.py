"""Data passed between the packages: frozen dataclasses, functions on them, one error.

Legend: `B` samples, `K` SDE steps (the window), `*L` latent dims, `M` (sample, step) pairs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class MustStop(RuntimeError):
    """Raised on all ranks alike when training must not continue; the message says why."""


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts of B samples, and which sample each one is: member `m` of the group of prompt `g`."""

    prompts: list[str]
    metadata: list[dict]
    group_id: Tensor  # (B,) int64, index in the prompt set
    member: Tensor  # (B,) int64, in [0, group size)


@dataclass(frozen=True, eq=False)
class Step:
    """A stochastic denoising step: the Gaussian N(mean, std^2), and the scale of its KL."""

    mean: Tensor  # (B, *L)
    std: Tensor  # 0-dim or (B, 1, .., 1): the std of the whole step, dt included
    kl_scale: Tensor  # 0-dim or (B, 1, .., 1)


@dataclass(frozen=True, eq=False)
class Rollout:
    """What an update needs to know of B sampled trajectories; their scores stay in `Rewards`."""

    cond: Any  # the backbone's own dataclass of tensors, leading dim B
    states: Tensor  # (B, K+1, *L) fp32; states[:, k+1] was drawn from N(means[:, k], std_k^2)
    means: Tensor  # (B, K, *L) fp32


@dataclass(frozen=True, eq=False)
class Credit:
    """What each SDE step is given, and how it came about."""

    reward: Tensor  # (B, K), the step reward; NaN where a score it needs is missing
    increment: Tensor  # (B, K), R[:, k+1] - R[:, k]; zeros when nothing branched
    turning: Tensor  # (B, K) bool, the steps whose reward is the aggregated long-term one


@dataclass(frozen=True, eq=False)
class LossStats:
    """The loss to differentiate, and detached 0-dim statistics of it."""

    loss: Tensor
    policy: Tensor
    kl: Tensor
    approx_kl: Tensor
    clip_high: Tensor  # share of ratios above 1 + clip_range
    clip_low: Tensor  # share of ratios below 1 - clip_range
    ratio_dev: Tensor  # max |ratio - 1|


def cat(batches: Sequence[T]) -> T:
    """Join dataclasses of tensors along the leading dim B.

    Raises ValueError for no batches, or batches of several classes.
    """
    if not batches:
        raise ValueError("cat needs at least one batch, got none")
    if len({type(batch) for batch in batches}) > 1:
        raise ValueError(f"cat got a mixture of types: {[type(b).__name__ for b in batches]}")
    return _rebuild(batches[0], lambda name: torch.cat([getattr(b, name) for b in batches]))


def index(batch: T, rows: Tensor | slice) -> T:
    """The samples `rows` of a dataclass of tensors: int64 (M,), bool (B,) or a slice."""

    def take(name: str) -> Tensor:
        tensor: Tensor = getattr(batch, name)
        return tensor[rows if isinstance(rows, slice) else rows.to(tensor.device)]

    return _rebuild(batch, take)


def to(batch: T, device: torch.device | str) -> T:
    """A dataclass of tensors on `device`."""
    return _rebuild(batch, lambda name: getattr(batch, name).to(device))


def _rebuild(batch: T, tensor: Callable[[str], Tensor]) -> T:
    names = [field.name for field in dataclasses.fields(batch)]  # type: ignore[arg-type]
    return type(batch)(**{name: tensor(name) for name in names})
