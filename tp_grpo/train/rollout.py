"""From prompts to ladders: noise, staircase, decoding, scoring; the ODE images of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tp_grpo.images import coarse, detail, finite_images, to_uint8
from tp_grpo.method import sampler, shared_state
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models.base import Backbone
from tp_grpo.plan import Plan
from tp_grpo.ranks.clock import Clock
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.settings import Settings
from tp_grpo.settings.learning import ObjectiveSettings, SampleSettings
from tp_grpo.train.whole_groups import WholeGroups
from tp_grpo.types import (
    NoisedImages,
    PromptBatch,
    Rollout,
    SharedStates,
    Trajectories,
    index,
    on_host,
)

# The noise of each purpose has keys of its own.
TRAINING, EVALUATION, COMMON, TIMES, AGAIN = 0, 1, 2, 4, 5


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

    def velocity(x: Tensor, step: int | Tensor, rows: Tensor) -> Tensor:
        return backbone.velocity(x, sigmas[step], index(cond, rows), guidance_scale)

    return velocity


@dataclass(frozen=True)
class Ladders(Rewards):
    """Scores (B, J) of a batch's ladders; compared: as `Pending.compared`, not in these scores."""

    compared: Mapping[int, Rewards] | None = None


@dataclass(frozen=True)
class Pending:
    """A rollout whose scores are still being computed on the scorers' threads.

    place (B, J), J the ladder's length: the scored image of each of the ladder's entries.
    coarse (B, h, w, 3), detail (B,): of the trajectories' own images, see `images`.
    images (B, J, H, W, 3) uint8, if they are to be kept.
    compared: of scorers of groups, the scores (G x J,) of the groups that this batch completed on
    this rank, by their place in the epoch; None without such scorers.
    """

    rollout: Rollout
    rewards: Future[Rewards]
    place: Tensor
    coarse: Tensor
    detail: Tensor
    images: np.ndarray | None
    compared: dict[int, Future[Rewards]] | None = None

    def finish(self) -> Ladders:
        """Wait for the scores."""
        place, scored = self.place, self.rewards.result()
        scores = {name: score[place] for name, score in scored.scores.items()}
        extras = {name: extra[place] for name, extra in scored.extras.items()}
        ladders = Ladders(scored.total[place], scores, extras)
        if self.compared is None:
            return ladders
        groups = {group: future.result() for group, future in self.compared.items()}
        return replace(ladders, compared=groups)


@dataclass(frozen=True)
class Sampler:
    """Samples a batch by the plan: what the update needs of it, and its clean images.

    key: seeds the noise, together with prompt and member. velocity: of the policy that samples;
    its row numbers are those of `cond`.
    """

    plan: Plan
    sample: SampleSettings
    objective: ObjectiveSettings
    key: Sequence[int]
    velocity: sampler.Velocity
    sigmas: Tensor  # (T+1,)
    shape: tuple[int, ...]  # of a latent

    def __call__(
        self, batch: PromptBatch, cond: Any, forks: Tensor
    ) -> tuple[Rollout, Tensor, Tensor]:
        """-> rollout, clean images (B, J, *L), and the one of all B x J that each entry (B, J) is.

        cond: of each row of the rollout, on the device. forks (B,): of shared states, the step that
        each image's group forks at.
        """
        if self.plan.points == "shared_state":
            return self._shared_states(batch, cond, forks)
        return self._trajectories(batch, cond)

    def _trajectories(self, batch: PromptBatch, cond: Any) -> tuple[Rollout, Tensor, Tensor]:
        plan = self.plan
        noise = draw_noise((TRAINING, *self.key), batch, (1 + len(plan.window), *self.shape))
        origin = torch.arange(len(noise))
        if plan.same_latent:
            origin = first_of_group(batch.group_id)
            noise[:, 0] = self._common(batch)
        noise = noise.to(self.sigmas.device)
        states, velocities, clean = sampler.staircase(
            self.velocity,
            noise[:, 0],
            self.sigmas,
            noise[:, 1:],
            completion=plan.completion,
            kind=self.sample.kind,
            noise_level=self.sample.noise_level,
            max_rows=self.sample.max_rows,
            origin=origin,
        )
        entries = _entries(origin, plan)
        if plan.points == "noised":
            return self._noised(batch, cond, clean), clean, entries
        kept = clean if self._clean else clean[:, :0]
        return Trajectories(cond, states, velocities, kept), clean, entries

    def _shared_states(
        self, batch: PromptBatch, cond: Any, forks: Tensor
    ) -> tuple[Rollout, Tensor, Tensor]:
        plan, size = self.plan, self.plan.group_size
        groups = replace(batch, group_id=batch.group_id[::size], member=batch.member[::size])
        start = self._common(groups).to(self.sigmas.device)
        noise = draw_noise((TRAINING, *self.key), batch, self.shape).to(start)
        forked = shared_state.shared_states(
            self.velocity,
            start,
            self.sigmas,
            noise.unflatten(0, (-1, size)),
            steps=forks[::size],
            completion=plan.completion,
            kind=self.sample.kind,
            noise_level=self.sample.noise_level,
            max_rows=self.sample.max_rows,
        )
        kept = forked.clean if self._clean else forked.clean[:, :0]
        rollout = SharedStates(
            cond, forked.state, forks[::size].to(start.device), *forked[1:3], kept
        )
        clean = forked.clean.flatten(0, 1)[:, None]
        return rollout, clean, torch.arange(len(clean))[:, None]

    def _noised(self, batch: PromptBatch, cond: Any, clean: Tensor) -> NoisedImages:
        """Each image at `objective.timesteps` times of the schedule, with fresh noise."""
        shared = OBJECTIVES[self.objective.name].groups
        owner = replace(batch, member=torch.zeros_like(batch.member)) if shared else batch
        count = self.objective.timesteps
        steps = draw_steps((TIMES, *self.key), owner, count, self._steps)
        eps = draw_noise((AGAIN, *self.key), owner, (count, *self.shape)).to(clean)
        sigmas = self.sigmas[steps.to(self.sigmas.device)]
        at = sigmas.reshape(*sigmas.shape, *[1] * len(self.shape))
        group = batch.group_id.to(clean.device)
        return NoisedImages(cond, (1 - at) * clean[:, -1:] + at * eps, sigmas, clean[:, -1:], group)

    @property
    def _clean(self) -> bool:
        return OBJECTIVES[self.objective.name].clean

    @property
    def _steps(self) -> int:
        """The noisiest steps that images are noised at."""
        return max(1, round(self.objective.noisiest * self.plan.steps))

    def _common(self, batch: PromptBatch) -> Tensor:
        """The start (B, *L) that all images of a prompt have in common."""
        common = replace(batch, member=torch.zeros_like(batch.member))
        return draw_noise((COMMON, *self.key), common, self.shape)


def roll_out(
    backbone: Backbone,
    rewards: RewardSet,
    batch: PromptBatch,
    cond: Any,
    *,
    plan: Plan,
    config: Settings,
    key: Sequence[int],
    keep_images: bool,
    forks: Tensor | None = None,
    clock: Clock | None = None,
    whole: WholeGroups | None = None,
) -> Pending:
    """Sample a batch with its branches, decode every completion, and start scoring the images.

    cond: the condition of each row of the rollout (the batch's images, or groups), on the device.
    key: seeds the noise, together with prompt and member. forks (B,): of shared states, the step
    that each image's group forks at. clock: counts rows evaluated, images decoded and scored.
    whole: brings groups together; needed by scorers of groups.
    """
    clock, sigmas = clock or Clock(), backbone.sigmas(plan.steps)
    velocity = velocity_of(backbone, sigmas, cond, config.sample.guidance_scale)

    def counted(x: Tensor, step: int | Tensor, rows: Tensor) -> Tensor:
        clock.count("evaluations_rollout", len(x))
        return velocity(x, step, rows)

    sample = Sampler(
        plan, config.sample, config.objective, key, counted, sigmas, backbone.latent_shape
    )
    rollout, clean, entries = sample(batch, cond, torch.empty(0) if forks is None else forks)
    if config.sample.store_on_cpu:
        rollout = on_host(rollout)
    distinct = entries.unique()
    with clock.phase("decode"):
        decoded = backbone.decode(clean.flatten(0, 1)[distinct.to(clean.device)])
        images = to_uint8(decoded)
    clock.count("images_decode", len(images))
    owners = (distinct // clean.shape[1]).tolist()
    prompts, metadata = [batch.prompts[i] for i in owners], [batch.metadata[i] for i in owners]
    finite, place = finite_images(decoded), torch.searchsorted(distinct, entries)
    scores = rewards.submit(images, prompts, metadata, finite, trained_only=True, grouped=False)
    compared, ladder = None, place.numpy()
    if rewards.trains_groups:
        assert whole is not None
        compared = whole.add(batch, images[ladder], finite[ladder])
    final = images[ladder[:, -1]]
    kept = images[ladder] if keep_images else None
    return Pending(rollout, scores, place, coarse(final), detail(final), kept, compared)


def draw_steps(key: Sequence[int], batch: PromptBatch, count: int, among: int) -> Tensor:
    """Steps (B, count) below `among`, drawn without repeats while they last; keyed as noise is."""
    rows = []
    for prompt, member in zip(batch.group_id.tolist(), batch.member.tolist(), strict=True):
        draw = np.random.default_rng([*key, prompt, member])
        rounds = [draw.permutation(among) for _ in range(-(-count // among))]
        rows.append(torch.from_numpy(np.concatenate(rounds)[:count]))
    return torch.stack(rows)


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
