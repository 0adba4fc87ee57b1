"""From an epoch's ladders to the advantage of each step, as the settings say."""

from __future__ import annotations

from torch import Tensor

from tp_grpo.method import credit
from tp_grpo.method.advantage import group_normalize, whiten
from tp_grpo.plan import Plan
from tp_grpo.settings import Settings
from tp_grpo.settings.sections import weight
from tp_grpo.train.gather import Gathered
from tp_grpo.types import Credit


def credit_steps(
    config: Settings, plan: Plan, samples: Gathered, forks: Tensor | None = None
) -> tuple[Credit, Tensor]:
    """Credit and advantages (N, `plan.credited`) of all ranks' samples.

    forks (N,): of shared states, the step that each sample's group forked at.
    """
    steps = _credit(config, plan, samples, samples.ladder)
    if config.advantage.combine == "sum":
        return steps, _advantages(config, steps.reward, samples.group_id, forks)
    total = 0.0 * steps.reward.nan_to_num(0)
    for name, options in config.rewards.scorers.items():
        if weight(options):
            reward = _credit(config, plan, samples, samples.scores[name]).reward
            total += weight(options) * group_normalize(reward, samples.group_id)
    clip = config.advantage.clip
    known = steps.reward.isnan().logical_not()
    return steps, whiten(total, known).clamp(-clip, clip)


def _credit(config: Settings, plan: Plan, samples: Gathered, ladder: Tensor) -> Credit:
    settings = config.credit
    method = credit.METHODS[settings.name]
    return credit.assign(
        settings.name,
        ladder,
        steps=plan.credited,
        states=plan.completion.states,
        group_id=samples.group_id,
        **{option: getattr(settings, option) for option in method.options},
    )


def _advantages(config: Settings, reward: Tensor, group_id: Tensor, forks: Tensor | None) -> Tensor:
    norm, shape = config.advantage, reward.shape
    if norm.over == "joint":
        group_id = group_id.repeat_interleave(shape[1])
        forks = None if forks is None else forks.repeat_interleave(shape[1])
        reward = reward.reshape(-1, 1)
    advantages = group_normalize(
        reward,
        group_id,
        global_std=norm.global_std,
        std_id=forks,
        scale=norm.scale or None,
        clip=norm.clip,
    )
    return advantages.reshape(shape)
