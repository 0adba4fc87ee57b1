"""Data passed between the packages: frozen dataclasses, functions on them, one error.

Legend: `B` samples, `K` SDE steps (the window), `*L` latent dims, `M` (sample, step) pairs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

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
class Trajectories:
    """B trajectories with K stochastic steps, as an update needs them."""

    by_column: ClassVar = ("states", "velocities", "clean")

    cond: Any  # the backbone's own dataclass of tensors, leading dim B
    states: Tensor  # (B, K+1, *L) fp32; states[:, k+1] was drawn from the step at states[:, k]
    velocities: Tensor  # (B, K, *L) fp32, of states[:, :-1]
    clean: Tensor  # (B, J, *L) fp32, the completions; J = 0 for a loss that does not look at them


@dataclass(frozen=True, eq=False)
class SharedStates:
    """B groups, each a state of the flow and G next states drawn from its one Gaussian."""

    cond: Any  # of the groups, leading dim B
    state: Tensor  # (B, *L) fp32
    step: Tensor  # (B,) int64, the step that leaves the state
    velocity: Tensor  # (B, *L) fp32, of the state
    candidates: Tensor  # (B, G, *L) fp32, the next states
    clean: Tensor  # (B, G, *L) fp32, their completions; (B, 0, *L) where no loss looks at them


@dataclass(frozen=True, eq=False)
class NoisedImages:
    """B clean images, each noised afresh at n times."""

    by_column: ClassVar = ("states", "sigmas")

    cond: Any  # leading dim B
    states: Tensor  # (B, n, *L) fp32, (1 - sigma) clean + sigma eps
    sigmas: Tensor  # (B, n) fp32, above 0
    clean: Tensor  # (B, 1, *L) fp32
    group: Tensor  # (B,) int64, the prompt


Rollout = Trajectories | SharedStates | NoisedImages
"""What an update needs to know of B sampled rows; their scores stay in `Rewards`."""


@dataclass(frozen=True, eq=False)
class Credit:
    """What each SDE step is given, and how it came about."""

    reward: Tensor  # (B, K), the step reward; NaN where a score it needs is missing
    increment: Tensor  # (B, K), R[:, k+1] - R[:, k]; zeros when nothing branched
    turning: Tensor  # (B, K) bool, the steps whose reward is the aggregated long-term one


@dataclass(frozen=True, eq=False)
class Loss:
    """The 0-dim loss to differentiate, and detached 0-dim statistics of it by name."""

    value: Tensor
    stats: dict[str, Tensor]


def cat(batches: Sequence[T]) -> T:
    """Join dataclasses of tensors along the leading dim B.

    Fields that the class names in `ragged` may differ in their second dim: zeros fill the shorter.
    Raises ValueError for no batches, or batches of several classes.
    """
    if not batches:
        raise ValueError("cat needs at least one batch, got none")
    if len({type(batch) for batch in batches}) > 1:
        raise ValueError(f"cat got a mixture of types: {[type(b).__name__ for b in batches]}")
    ragged = getattr(batches[0], "ragged", ())

    def joined(name: str) -> Tensor:
        tensors = [getattr(batch, name) for batch in batches]
        return torch.cat(_even(tensors) if name in ragged else tensors)

    return _rebuild(batches[0], joined)


def _even(tensors: list[Tensor]) -> list[Tensor]:
    """(B, n, ...) of several n -> the same with zeros up to the largest n."""
    longest = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([t, t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:])], 1)
        if t.shape[1] < longest
        else t
        for t in tensors
    ]


def index(batch: T, rows: Tensor | slice) -> T:
    """The samples `rows` of a dataclass of tensors: int64 (M,) in host memory, or a slice.

    All of them in their order are the batch itself.
    """
    count = len(getattr(batch, dataclasses.fields(batch)[0].name))  # type: ignore[arg-type]
    if isinstance(rows, Tensor) and torch.equal(rows, torch.arange(count)):
        return batch

    def take(name: str) -> Tensor:
        tensor: Tensor = getattr(batch, name)
        if isinstance(rows, slice):
            return tensor[rows]
        return tensor[rows.to(tensor.device, non_blocking=tensor.device.type != "cpu")]

    return _rebuild(batch, take)


def repeat(batch: T, rows: int) -> T:
    """One sample (leading dim 1) as that many, without a copy."""

    def repeated(name: str) -> Tensor:
        tensor: Tensor = getattr(batch, name)
        return tensor.expand(rows, *tensor.shape[1:])

    return _rebuild(batch, repeated)


def to(batch: T, device: torch.device | str) -> T:
    """A dataclass of tensors, and of such dataclasses, on `device`.

    Fields that the class names in `host` stay in host memory.
    """
    ahead = torch.device(device).type != "cpu"  # the host need not wait for what it has sent

    def moved(name: str) -> Any:
        value = getattr(batch, name)
        if name in getattr(batch, "host", ()):
            return value
        if not isinstance(value, Tensor):
            return to(value, device)
        return value.to(device, non_blocking=ahead)

    return _rebuild(batch, moved)


def on_host(batch: T) -> T:
    """A dataclass of tensors, and of such dataclasses, in host memory; see `host_copy`.

    Fields that the class names in `by_column` lie there column by column.
    """

    def moved(name: str) -> Any:
        value = getattr(batch, name)
        if not isinstance(value, Tensor):
            return on_host(value)
        return host_copy(value, by_column=name in getattr(batch, "by_column", ()))

    return _rebuild(batch, moved)


def host_copy(values: Tensor, *, by_column: bool = False) -> Tensor:
    """`values` in host memory; from a GPU in page-locked memory, while both keep working.

    Only the GPU may read it again, or the host once it has waited for the GPU. by_column: of values
    (B, K, ...) each [:, k] is one piece of memory, which can be sent back without waiting.
    """
    if values.device.type != "cuda":
        return values.to("cpu")
    source = (values.transpose(0, 1) if by_column else values).contiguous()
    copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    copy.copy_(source, non_blocking=True)
    return copy.transpose(0, 1) if by_column else copy


def _rebuild(batch: T, tensor: Callable[[str], Any]) -> T:
    names = [field.name for field in dataclasses.fields(batch)]  # type: ignore[arg-type]
    return type(batch)(**{name: tensor(name) for name in names})
