"""From prompts to ladders: noise, staircase, decoding, scoring. Also the plain ODE images of an evaluation."""

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
from tp_grpo.types import PromptBatch, Rollout, index, to

TRAINING, EVALUATION, COMMON = 0, 1, 2  # what a noise is for is part of its key


def draw_noise(key: Sequence[int], batch: PromptBatch, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (B, *shape) fp32 on the CPU; each sample's from a generator of (key, prompt, member) alone."""
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
    """A rollout whose scores are still on the reward thread.

    place: (B, J), J the ladder's length: the scored image that each entry stands for; coarse, detail: (B, h, w, 3) and
    (B,) of the trajectories' own images, see `images`; images: (B, J, H, W, 3) uint8 where they are to be kept.
    """

    rollout: Rollout
    rewards: Future[Rewards]
    place: Tensor
    coarse: Tensor
    detail: Tensor
    images: np.ndarray | None

    def finish(self) -> tuple[Rollout, Rewards]:
        """Wait for the scores; the rollout with its ladder, and the rewards as (B, J)."""
        place, done = self.place, self.rewards.result()
        total = done.total[place]
        rewards = Rewards(
            total,
            {name: score[place] for name, score in done.scores.items()},
            {name: extra[place] for name, extra in done.extras.items()},
        )
        old = self.rollout
        return Rollout(old.cond, old.trajectory, total, old.group_id, rewards.scores), rewards


def roll_out(
    backbone: Backbone,
    rewards: RewardSet,
    batch: PromptBatch,
    cond: Any,
    *,
    plan: Plan,
    sample: Any,
    key: Sequence[int],
    keep_images: bool,
    clock: Clock | None = None,
) -> Pending:
    """Sample a batch with its branches, decode every completion and hand them to the reward thread.

    The clock counts the rows that were evaluated and the images that were decoded, which are those that are scored.
    """
    clock, sigmas = clock or Clock(), backbone.sigmas(plan.steps)
    velocity = velocity_of(backbone, sigmas, cond, sample.guidance_scale)

    def counted(x: Tensor, step: int, rows: Tensor) -> Tensor:
        clock.count("evaluations_rollout", len(x))
        return velocity(x, step, rows)

    noise = draw_noise((TRAINING, *key), batch, (1 + len(plan.window), *backbone.latent_shape))
    origin = first_of_group(batch.group_id) if plan.same_latent else torch.arange(len(noise))
    if plan.same_latent:
        noise[:, 0] = draw_noise(
            (COMMON, *key), replace(batch, member=0 * batch.member), backbone.latent_shape
        )
    noise = noise.to(backbone.device)
    trajectory, clean = sampler.staircase(
        counted,
        noise[:, 0],
        sigmas,
        noise[:, 1:],
        window=plan.window,
        kind=sample.kind,
        noise_level=sample.noise_level,
        max_rows=sample.max_rows,
        completions=plan.completions,
        solver=plan.solver,
        origin=origin,
    )
    if sample.store_on_cpu:
        trajectory, cond = to(trajectory, "cpu"), to(cond, "cpu")
    image_of = _image_of(origin, plan)
    different = image_of.unique()
    with clock.phase("decode"):
        decoded = backbone.decode(clean.flatten(0, 1)[different.to(clean.device)])
        images = to_uint8(decoded)
    clock.count("images_decode", len(images))
    owners = (different // plan.ladder).tolist()
    prompts, metadata = [batch.prompts[i] for i in owners], [batch.metadata[i] for i in owners]
    future = rewards.submit(images, prompts, metadata, finite_images(decoded), trained_only=True)
    place = torch.searchsorted(different, image_of)
    unscored = Rollout(cond, trajectory, torch.empty(len(place), 0), batch.group_id, {})
    own = images[place[:, -1].numpy()]
    kept = images[place.numpy()] if keep_images else None
    return Pending(unscored, future, place, coarse(own), detail(own), kept)


def first_of_group(group_id: Tensor) -> Tensor:
    """For each sample (B,) the first of the batch in its group -> (B,) int64."""
    return (group_id[:, None] == group_id).to(torch.uint8).argmax(1)


def _image_of(origin: Tensor, plan: Plan) -> Tensor:
    """Which of all B x J completions, each entry of the ladder shows -> (B, J); a common baseline is one."""
    entry = torch.arange(len(origin) * plan.ladder).reshape(-1, plan.ladder)
    if 0 in plan.branches:
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
