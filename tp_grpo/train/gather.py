"""All ranks' samples of an epoch in one order, whoever held them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tp_grpo.plan import Plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards
from tp_grpo.train.rollout import Ladders


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
    rewards: Sequence[Ladders],
    extras: Sequence[str],
) -> Gathered:
    """One collective over all ranks' batches, and one over their groups if a scorer compares them.

    groups: the epoch's prompts; rewards: this rank's, a batch each; extras: the names that all
    ranks ask for.
    """
    rows = [torch.cat(list(r.columns(extras).values()), 1) for r in rewards]
    ladder, *columns = in_order(runtime, plan, rows).split(plan.ladder, 1)
    scores = dict(zip(rewards[0].scores, columns, strict=False))
    others = dict(zip(extras, columns[len(scores) :], strict=True))
    if rewards[0].compared is not None:
        compared = _compared(runtime, plan, rewards, extras)
        ladder, scores = ladder + compared.total, scores | compared.scores
        others = {k: v.where(~v.isnan(), compared.extras[k]) for k, v in others.items()}
    group_id = torch.tensor(groups).repeat_interleave(plan.group_size)
    return Gathered(ladder.contiguous(), group_id, scores, others)


def _compared(
    runtime: Runtime, plan: Plan, rewards: Sequence[Ladders], extras: Sequence[str]
) -> Rewards:
    """The scores (N, J) of scorers of groups; each group is scored on one rank."""
    own = {group: scored for batch in rewards for group, scored in (batch.compared or {}).items()}
    parts = {group: s for rank in runtime.all_gather_object(own) for group, s in rank.items()}
    ordered = [parts[group].columns(extras) for group in range(plan.groups)]

    def joined(name: str) -> Tensor:
        return torch.cat([part[name] for part in ordered]).unflatten(0, (-1, plan.ladder))

    names = list(parts[0].scores)
    return Rewards(
        joined("total"), {name: joined(name) for name in names}, {e: joined(e) for e in extras}
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
