"""All ranks' samples of an epoch in one order, whoever held them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tp_grpo.plan import Plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards
from tp_grpo.types import Rollout


@dataclass(frozen=True)
class Gathered:
    """N samples on the CPU, ordered by (group, member): no result can depend on who held a sample.

    ladder (N, J), J its length; group_id (N,); scores and extras: name -> (N, J), NaN where there is none.
    """

    ladder: Tensor
    group_id: Tensor
    scores: dict[str, Tensor]
    extras: dict[str, Tensor]


def gather(
    runtime: Runtime,
    plan: Plan,
    groups: Sequence[int],
    finished: list[tuple[Rollout, Rewards]],
    extras: Sequence[str],
) -> Gathered:
    """From each rank's batches; one collective. groups: the epoch's; extras: the names that all ranks ask for."""
    rows = [
        torch.cat([r.ladder, *r.rewards.values(), *(reward.extra(name) for name in extras)], 1)
        for r, reward in finished
    ]
    ladder, *columns = in_order(runtime, plan, rows).split(plan.ladder, 1)
    scores = list(finished[0][0].rewards)
    return Gathered(
        ladder.contiguous(),
        torch.tensor(groups).repeat_interleave(plan.group_size),
        dict(zip(scores, columns, strict=False)),
        dict(zip(extras, columns[len(scores) :], strict=True)),
    )


def in_order(runtime: Runtime, plan: Plan, rows: list[Tensor]) -> Tensor:
    """Each rank's rows, batch by batch -> those of all (N, ...) on the CPU, ordered by (group, member)."""
    held = [
        slot for rank in range(plan.world_size) for batch in plan.batches(rank) for slot in batch
    ]
    places = torch.tensor([slot * plan.group_size + member for slot, member in held])
    return gather_rows(runtime, torch.cat(rows), places)


def gather_rows(runtime: Runtime, rows: Tensor, places: Tensor) -> Tensor:
    """All ranks' rows (N, ...) on the CPU; places (N,): where each goes, rank by rank."""
    gathered = runtime.gather(rows.to(runtime.device)).cpu()
    ordered = torch.empty_like(gathered)
    ordered[places] = gathered
    return ordered
