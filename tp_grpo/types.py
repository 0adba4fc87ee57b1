"""What travels between the rooms: frozen dataclasses, and three functions that work on all of them.

Legend: `B` samples, `K` SDE steps (the window), `*L` latent dims. The leading dim of every
tensor in a batch, and the length of every list, is B. What belongs to the batch as a whole is shared: 0-dim tensors,
plain values, `None`, and fields marked with `metadata={"shared": True}`.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts of B samples, and which sample each one is: member `m` of the group of prompt `g`."""

    prompts: list[str]
    metadata: list[dict]
    group_id: Tensor  # (B,) int64, index in the prompt set
    member: Tensor  # (B,) int64, in [0, group size)


@dataclass(frozen=True, eq=False)
class Step:
    """One stochastic denoising step: the Gaussian N(mean, std^2), and the scale its KL is measured in."""

    mean: Tensor  # (B, *L)
    std: Tensor  # 0-dim or (B, 1, .., 1): the std of the whole step, dt included
    kl_scale: Tensor  # 0-dim or (B, 1, .., 1)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The SDE window of B samples, as sampled."""

    x: Tensor  # (B, K+1, *L) fp32, the states; x[:, k+1] was drawn from N(mean[:, k], std_k^2)
    mean: Tensor  # (B, K, *L) fp32
    log_prob: Tensor  # (B, K)
    step_index: Tensor = field(
        metadata={"shared": True}
    )  # (K,) int64, position of each step in `sigmas`


@dataclass(frozen=True, eq=False)
class Rollout:
    """All that the update needs to know of B samples; ladders are (B, K+1), or (B, 1) when nothing branched."""

    cond: Any  # the backbone's own dataclass, leading dim B
    trajectory: Trajectory
    ladder: Tensor  # (B, K+1) or (B, 1), the weighted sum of `rewards`; NaN where scoring failed
    group_id: Tensor  # (B,) int64
    rewards: dict[str, Tensor]  # one ladder for each scorer


@dataclass(frozen=True, eq=False)
class Credit:
    """What each SDE step is given, and how it came about."""

    reward: Tensor  # (B, K), the step reward; NaN where the ladder did not say
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


def cat(items: Sequence[T]) -> T:
    """Joins batches along the leading dim B: dataclasses, dicts, tensors (torch.cat) and lists (one entry a sample).

    Raises ValueError when there is nothing to join, when the structures differ, or when what the batches should share
    (0-dim tensors, plain values, shared fields) is not equal.
    """
    if not items:
        raise ValueError("cat needs at least one batch, got none")
    batches: list[Any] = list(items)
    first = batches[0]
    if len({type(batch) for batch in batches}) > 1:
        raise ValueError(
            f"cat got a mixture of types: {[type(batch).__name__ for batch in batches]}"
        )
    if dataclasses.is_dataclass(first):
        return _rebuild(
            first,
            lambda f: (_common if _is_shared(f) else cat)([getattr(b, f.name) for b in batches]),
        )
    if isinstance(first, dict):
        if any(batch.keys() != first.keys() for batch in batches):
            raise ValueError(
                f"cat got dicts with different keys: {[list(batch) for batch in batches]}"
            )
        return cast(T, {key: cat([batch[key] for batch in batches]) for key in first})
    if isinstance(first, list):
        return cast(T, [entry for batch in batches for entry in batch])
    if isinstance(first, Tensor) and first.ndim:
        return cast(T, torch.cat(batches))
    return _common(batches)


def index(item: T, rows: Tensor | slice) -> T:
    """The samples `rows` of a batch, in that order: an int64 (M,) or bool (B,) tensor, or a slice.

    What the batch shares is handed on as it is. Raises IndexError for rows that are not there.
    """
    batch: Any = item
    if dataclasses.is_dataclass(batch):
        return _rebuild(
            batch, lambda f: (_keep if _is_shared(f) else index)(getattr(batch, f.name), rows)
        )
    if isinstance(batch, dict):
        return cast(T, {key: index(value, rows) for key, value in batch.items()})
    if isinstance(batch, list):
        return cast(
            T, batch[rows] if isinstance(rows, slice) else [batch[i] for i in _integers(rows)]
        )
    if isinstance(batch, Tensor) and batch.ndim:
        return cast(T, batch[rows if isinstance(rows, slice) else rows.to(batch.device)])
    return item


def to(item: T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T:
    """Moves every tensor inside `item` to `device`, and the floating ones to `dtype`; the rest is left alone."""
    batch: Any = item
    if dataclasses.is_dataclass(batch):
        return _rebuild(batch, lambda f: to(getattr(batch, f.name), device, dtype))
    if isinstance(batch, dict):
        return cast(T, {key: to(value, device, dtype) for key, value in batch.items()})
    if isinstance(batch, list):
        return cast(T, [to(entry, device, dtype) for entry in batch])
    if isinstance(batch, Tensor):
        return cast(T, batch.to(device=device, dtype=dtype if batch.is_floating_point() else None))
    return item


def _rebuild(item: Any, value: Callable[[dataclasses.Field], Any]) -> Any:
    return type(item)(**{f.name: value(f) for f in dataclasses.fields(item)})


def _is_shared(f: dataclasses.Field) -> bool:
    return f.metadata.get("shared", False)


def _keep(item: Any, rows: Tensor | slice) -> Any:
    return item


def _integers(rows: Tensor) -> list[int]:
    return (rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).tolist()


def _common(batches: list[Any]) -> Any:
    first = batches[0]
    same = torch.equal if isinstance(first, Tensor) else operator.eq
    if not all(same(first, other) for other in batches[1:]):
        raise ValueError(f"cat got batches that do not share one value: {batches}")
    return first
