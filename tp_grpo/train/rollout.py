"""From prompts to ladders: noise, staircase, decoding, scoring; the ODE images of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tp_grpo.images import coarse, detail, finite_images, to_uint8
from tp_grpo.method import sampler
from tp_grpo.models.base import Backbone
from tp_grpo.plan import Plan
from tp_grpo.ranks.clock import Clock
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.settings import SampleSettings
from tp_grpo.types import PromptBatch, Rollout, index, to

TRAINING, EVALUATION, COMMON = 0, 1, 2  # the noise of each purpose has keys of its own


def draw_noise(key: Sequence[int], batch: PromptBatch, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (B, *shape) fp32 on the CPU; each row is keyed by (key, prompt, member)."""
    rows = []
    for prompt, member in zip(batch.group_id.tolist(), batch.member.tolist(), strict=True):
        words = np.random.SeedSequence([*key, prompt, member]).generate_state(1, np.uint64)
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(int(words[0]))))
    return torch.stack(rows)


def velocity_of(
    backbone: Backbone, sigmas: Tensor, cond: Any, guidance_scale: float
) -> sampler.Velocity:
    """The backbone as the sampler sees it."""

    def velocity(x: Tensor, step: int, rows: Tensor) -> Tensor:
        return backbone.velocity(x, sigmas[step], index(cond, rows), guidance_scale)

    return velocity


@dataclass(frozen=True)
class Pending:
    """A rollout whose scores are still being computed on the scorers' threads.

    place (B, J), J the ladder's length: the scored image of each of the ladder's entries.
    coarse (B, h, w, 3), detail (B,): of the trajectories' own images, see `images`.
    images (B, J, H, W, 3) uint8, if they are to be kept.
    """

    rollout: Rollout
    rewards: Future[Rewards]
    place: Tensor
    coarse: Tensor
    detail: Tensor
    images: np.ndarray | None

    def finish(self) -> Rewards:
        """Wait for the scores -> ladders (B, J)."""
        place, scored = self.place, self.rewards.result()
        scores = {name: score[place] for name, score in scored.scores.items()}
        extras = {name: extra[place] for name, extra in scored.extras.items()}
        return Rewards(scored.total[place], scores, extras)


def roll_out(
    backbone: Backbone,
    rewards: RewardSet,
    batch: PromptBatch,
    cond: Any,
    *,
    plan: Plan,
    sample: SampleSettings,
    key: Sequence[int],
    keep_images: bool,
    clock: Clock | None = None,
) -> Pending:
    """Sample a batch with its branches, decode every completion, and start scoring the images.

    cond: the batch's condition, on the device. sample: `settings.sample`. key: seeds the noise,
    together with prompt and member. clock: counts rows evaluated, images decoded and scored.
    """
    clock, sigmas = clock or Clock(), backbone.sigmas(plan.steps)
    velocity = velocity_of(backbone, sigmas, cond, sample.guidance_scale)

    def counted(x: Tensor, step: int, rows: Tensor) -> Tensor:
        clock.count("evaluations_rollout", len(x))
        return velocity(x, step, rows)

    noise = draw_noise((TRAINING, *key), batch, (1 + len(plan.window), *backbone.latent_shape))
    origin = torch.arange(len(noise))
    if plan.same_latent:
        origin = first_of_group(batch.group_id)
        common = replace(batch, member=torch.zeros_like(batch.member))
        noise[:, 0] = draw_noise((COMMON, *key), common, backbone.latent_shape)
    noise = noise.to(backbone.device)
    states, means, clean = sampler.staircase(
        counted,
        noise[:, 0],
        sigmas,
        noise[:, 1:],
        completion=plan.completion,
        kind=sample.kind,
        noise_level=sample.noise_level,
        max_rows=sample.max_rows,
        origin=origin,
    )
    rollout = Rollout(cond, states, means)
    if sample.store_on_cpu:
        rollout = Rollout(to(cond, "cpu"), states.cpu(), means.cpu())
    entries = _entries(origin, plan)
    distinct = entries.unique()
    with clock.phase("decode"):
        decoded = backbone.decode(clean.flatten(0, 1)[distinct.to(clean.device)])
        images = to_uint8(decoded)
    clock.count("images_decode", len(images))
    owners = (distinct // plan.ladder).tolist()
    prompts, metadata = [batch.prompts[i] for i in owners], [batch.metadata[i] for i in owners]
    scores = rewards.submit(images, prompts, metadata, finite_images(decoded), trained_only=True)
    place = torch.searchsorted(distinct, entries)
    final = images[place[:, -1].numpy()]
    kept = images[place.numpy()] if keep_images else None
    return Pending(rollout, scores, place, coarse(final), detail(final), kept)


def first_of_group(group_id: Tensor) -> Tensor:
    """For each sample (B,) the first of the batch in its group -> (B,) int64."""
    return (group_id[:, None] == group_id).to(torch.uint8).argmax(1)


def _entries(origin: Tensor, plan: Plan) -> Tensor:
    """The completion, of all B x J, of each ladder entry (B, J); a shared baseline is one."""
    entry = torch.arange(len(origin) * plan.ladder).reshape(-1, plan.ladder)
    if 0 in plan.completion.states[:-1]:
        entry[:, 0] = entry[origin, 0]
    return entry


@torch.no_grad()
def ode_images(
    backbone: Backbone,
    batch: PromptBatch,
    cond: Any,
    *,
    steps: int,
    guidance_scale: float,
    key: Sequence[int],
) -> Tensor:
    """Deterministic images (B, 3, H, W) in [0, 1] from noise keyed by (key, prompt, member)."""
    sigmas = backbone.sigmas(steps)
    noise = draw_noise((EVALUATION, *key), batch, backbone.latent_shape).to(backbone.device)
    velocity = velocity_of(backbone, sigmas, cond, guidance_scale)
    return backbone.decode(sampler.ode(velocity, noise, sigmas))
