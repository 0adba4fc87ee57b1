"""All ranks' samples of an epoch in one order, whoever held them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tp_grpo.plan import Plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards


@dataclass(frozen=True)
class Gathered:
    """N samples on the CPU, ordered by (group, member): no result can depend on who held a sample.

    ladder (N, J), J its length; group_id (N,); scores and extras: name -> (N, J), NaN if missing.
    """

    ladder: Tensor
    group_id: Tensor
    scores: dict[str, Tensor]
    extras: dict[str, Tensor]


def gather(
    runtime: Runtime,
    plan: Plan,
    groups: Sequence[int],
    rewards: Sequence[Rewards],
    extras: Sequence[str],
) -> Gathered:
    """One collective over all ranks' batches.

    groups: the epoch's prompts; rewards: this rank's, a batch each, of ladders (B, J); extras: the
    names that all ranks ask for.
    """
    rows = [
        torch.cat([r.total, *r.scores.values(), *(r.extra(name) for name in extras)], 1)
        for r in rewards
    ]
    ladder, *columns = in_order(runtime, plan, rows).split(plan.ladder, 1)
    scores = list(rewards[0].scores)
    return Gathered(
        ladder.contiguous(),
        torch.tensor(groups).repeat_interleave(plan.group_size),
        dict(zip(scores, columns, strict=False)),
        dict(zip(extras, columns[len(scores) :], strict=True)),
    )


def in_order(runtime: Runtime, plan: Plan, rows: Sequence[Tensor]) -> Tensor:
    """This rank's rows, a batch each -> all ranks' (N, ...) on the CPU, by (group, member)."""
    places = [row for rank in range(plan.world_size) for batch in plan.rows(rank) for row in batch]
    return gather_rows(runtime, torch.cat(list(rows)), torch.tensor(places))


def gather_rows(runtime: Runtime, rows: Tensor, places: Tensor) -> Tensor:
    """All ranks' rows (N, ...) on the CPU; places (N,): where each goes, rank by rank."""
    gathered = runtime.gather(rows.to(runtime.device)).cpu()
    ordered = torch.empty_like(gathered)
    ordered[places] = gathered
    return ordered
