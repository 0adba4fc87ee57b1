"""All ranks do the same run: what must be equal on each is gathered and compared, and who differs is named."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tp_grpo.ranks.runtime import Runtime

MAX_SHOWN = 10  # differences named in a message


class MustStop(RuntimeError):
    """Raised on all ranks alike: what was found must not be trained on."""


class DisagreementError(MustStop):
    """Ranks disagree on what must be identical. The message names them and what differs."""


def check(runtime: Runtime, own: Mapping[str, Any], advice: str) -> None:
    """Compare {what: value} over the ranks; a collective. Values are compared as they print.

    Raises DisagreementError on all ranks alike, naming the ranks outside of the majority (of equals, rank 0's side).
    """
    if runtime.world_size == 1:
        return
    ranks = runtime.all_gather_object({what: repr(value) for what, value in own.items()})
    different = [line for what in own for line in _outside(what, [rank[what] for rank in ranks])]
    if different:
        rest = [f"  and {len(different) - MAX_SHOWN} more"] if len(different) > MAX_SHOWN else []
        raise DisagreementError(
            "\n".join(["the ranks disagree:", *different[:MAX_SHOWN], *rest, advice])
        )


def check_weights(runtime: Runtime, parameters: Mapping[str, Tensor], when: str) -> None:
    """`check` of trained weights, which names the parameter. A sharded one is left out: there is no other copy."""
    advice = (
        f"this was seen {when}; likely causes: GPUs, drivers or library versions that differ between the nodes, or a "
        "failing GPU. The checkpoints hold what rank 0 had"
    )
    if runtime.world_size == 1:
        return
    sums = checksums(p for p in parameters.values() if not hasattr(p, "to_local"))
    digest = hashlib.sha256(repr(sums).encode()).hexdigest()
    if (
        len(set(runtime.all_gather_object(digest))) > 1
    ):  # each rank sees the same, so all go on to ask which parameter it is
        names = [name for name, p in parameters.items() if not hasattr(p, "to_local")]
        check(
            runtime,
            {f"weights of {name}": value for name, value in zip(names, sums, strict=True)},
            advice,
        )


def checksums(parameters: Iterable[Tensor]) -> list[int]:
    """For each fp32 tensor the sum of its bits read as integers, modulo 2**64: exact in any order of adding up."""
    with torch.no_grad():
        sums = [p.detach().float().view(torch.int32).sum(dtype=torch.int64) for p in parameters]
        return torch.stack(sums).tolist() if sums else []


def _outside(what: str, values: list[str]) -> list[str]:
    counts = Counter(values)
    if len(counts) == 1:
        return []
    most = max(counts.values())
    usual = next(value for value in values if counts[value] == most)
    return [
        f"  rank {rank} has {what} {_short(value)}, where rank {values.index(usual)} has {_short(usual)}"
        for rank, value in enumerate(values)
        if value != usual
    ]


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
