"""From an epoch's ladders to the advantage of each step, as the settings say."""

from __future__ import annotations

from torch import Tensor

from tp_grpo.method import credit
from tp_grpo.method.advantage import group_normalize
from tp_grpo.plan import Plan
from tp_grpo.settings import Settings
from tp_grpo.train.gather import Gathered
from tp_grpo.types import Credit


def credit_steps(config: Settings, plan: Plan, samples: Gathered) -> tuple[Credit, Tensor]:
    """Credit and advantages (N, K) of all ranks' samples."""
    settings, norm = config.credit, config.advantage
    method = credit.METHODS[settings.name]
    steps = credit.assign(
        settings.name,
        samples.ladder,
        steps=len(plan.window),
        states=plan.completion.states,
        group_id=samples.group_id,
        **{option: getattr(settings, option) for option in method.options},
    )
    advantages = group_normalize(
        steps.reward, samples.group_id, global_std=norm.global_std, clip=norm.clip
    )
    return steps, advantages
