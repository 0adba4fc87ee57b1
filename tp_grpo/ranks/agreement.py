"""What must be equal on all ranks is gathered and compared, and who differs is named."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tp_grpo.ranks.runtime import Runtime
from tp_grpo.types import MustStop

MAX_SHOWN = 10  # differences named in a message


class DisagreementError(MustStop):
    """Ranks disagree on what must be identical. The message names them and what differs."""


def check(runtime: Runtime, values: Mapping[str, Any], advice: str) -> None:
    """Compare {what: value} over the ranks, as the values print; a collective.

    Raises DisagreementError on all ranks, naming those outside the majority (rank 0's if tied).
    """
    if runtime.world_size == 1:
        return
    ranks = runtime.all_gather_object({what: repr(value) for what, value in values.items()})
    lines = [line for what in values for line in _outside(what, [rank[what] for rank in ranks])]
    if lines:
        more = len(lines) - MAX_SHOWN
        rest = [f"  and {more} more"] if more > 0 else []
        raise DisagreementError(
            "\n".join(["the ranks disagree:", *lines[:MAX_SHOWN], *rest, advice])
        )


def check_epoch(runtime: Runtime, epoch: int, facts: Mapping[str, Any]) -> None:
    """`check` that all ranks are about to run the same epoch, of which `facts` says what counts."""
    advice = "every node must have the same prompt files and the same version of the code"
    check(runtime, {**facts, "as epoch": epoch}, advice)


def check_weights(runtime: Runtime, parameters: Mapping[str, Tensor], when: str) -> None:
    """`check` of trained weights, by parameter. Sharded ones have no copy to compare with."""
    if runtime.world_size == 1:
        return
    whole = {name: p for name, p in parameters.items() if not hasattr(p, "to_local")}
    sums = checksums(whole.values())
    digest = hashlib.sha256(repr(sums).encode()).hexdigest()
    if len(set(runtime.all_gather_object(digest))) > 1:  # known to all, so all enter `check`
        named = {f"weights of {name}": value for name, value in zip(whole, sums, strict=True)}
        check(
            runtime,
            named,
            f"this was seen {when}; likely causes: GPUs, drivers or library versions that differ "
            "between the nodes, or a failing GPU. The checkpoints hold what rank 0 had",
        )


def checksums(parameters: Iterable[Tensor]) -> list[int]:
    """The sum of each fp32 tensor's bits read as integers, modulo 2**64: exact in any order."""
    with torch.no_grad():
        sums = [p.detach().float().view(torch.int32).sum(dtype=torch.int64) for p in parameters]
        return torch.stack(sums).tolist() if sums else []


def _outside(what: str, values: list[str]) -> list[str]:
    """A line for each rank whose value is not the most common one."""
    counts = Counter(values)
    usual = max(values, key=counts.__getitem__)  # the first of the most common
    first, text = values.index(usual), _short(usual)
    return [
        f"  rank {rank} has {what} {_short(value)}, where rank {first} has {text}"
        for rank, value in enumerate(values)
        if value != usual
    ]


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
