"""All ranks' samples of an epoch in one order, whoever held them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tp_grpo.plan import Plan
from tp_grpo.rewards import Rewards
from tp_grpo.runtime import Runtime
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


def gather(runtime: Runtime, plan: Plan, finished: list[tuple[Rollout, Rewards]], extras: Iterable[str]) -> Gathered:
    """From each rank's batches; a collective. extras: the names that all ranks ask for."""
    rollouts, rewards = [rollout for rollout, _ in finished], [reward for _, reward in finished]
    return Gathered(
        in_order(runtime, plan, [r.ladder for r in rollouts]),
        in_order(runtime, plan, [r.group_id for r in rollouts]),
        {name: in_order(runtime, plan, [r.rewards[name] for r in rollouts]) for name in rollouts[0].rewards},
        {name: in_order(runtime, plan, [r.extra(name) for r in rewards]) for name in extras},
    )


def in_order(runtime: Runtime, plan: Plan, rows: list[Tensor]) -> Tensor:
    """Each rank's rows, batch by batch -> those of all (N, ...) on the CPU, ordered by (group, member)."""
    gathered = runtime.gather(torch.cat(rows).to(runtime.device)).cpu()
    held = [slot for rank in range(plan.world_size) for batch in plan.batches(rank) for slot in batch]
    ordered = torch.empty_like(gathered)
    ordered[torch.tensor([slot * plan.group_size + member for slot, member in held])] = gathered
    return ordered
