"""Seeded ODE evaluation: the same prompts and noise for any batch size and number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate.sharing import Sample, Sampled, deal, whole_groups
from tp_grpo.images import finite_images, to_uint8
from tp_grpo.method.stats import summarise
from tp_grpo.models.base import Backbone
from tp_grpo.models.conditions import conditions_of, encode_once
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.settings import Settings
from tp_grpo.train.gather import gather_rows
from tp_grpo.train.rollout import ode_images
from tp_grpo.types import PromptBatch


@dataclass(frozen=True)
class Evaluation:
    """The scores of n images.

    scores: "total", each scorer and its extras -> (n,) fp32, NaN where missing.
    images: the first of them, (m, H, W, 3) uint8.
    prompts: of each image. macros: see `method.stats.score_means`.
    """

    scores: dict[str, Tensor]
    images: np.ndarray
    prompts: list[str]
    macros: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Means over prompts and their standard errors (suffix _se), macro means included."""
        return summarise(self.scores, self.prompts, self.macros)


def samples(count: int, members: int) -> list[Sample]:
    """All images of `count` prompts: the first member of every prompt, then the second."""
    return [(prompt, member) for member in range(members) for prompt in range(count)]


def sample_images(
    runtime: Runtime,
    backbone: Backbone,
    prompts: PromptSet,
    chosen: Sequence[Sample],
    *,
    config: Settings,
) -> Iterator[Sampled]:
    """The samples' ODE images by batch: pixels (b, H, W, 3) uint8, and which are finite (b,)."""
    conditions = encode_once(backbone, [prompts.prompts[i] for i, _ in chosen])
    size = config.eval.batch_size
    each = min(size, len(chosen)) * runtime.world_size
    for start in runtime.bar(range(0, len(chosen), size), "evaluate", unit="images", each=each):
        batch = prompts.batch(*zip(*chosen[start : start + size], strict=True))
        images = ode_images(
            backbone,
            batch,
            conditions_of(conditions, batch.prompts, backbone.device),
            steps=config.eval.steps,
            guidance_scale=config.sample.guidance_scale,
            key=(config.seed,),
        )
        yield batch, to_uint8(images), finite_images(images)


def evaluate(
    runtime: Runtime,
    backbone: Backbone,
    rewards: RewardSet,
    prompts: PromptSet,
    *,
    config: Settings,
    chosen: Sequence[Sample] | None = None,
    boundary: Callable[[], None] = lambda: None,
    keep: Callable[[PromptBatch, Rewards], None] = lambda batch, scored: None,
) -> Evaluation:
    """Sample and score images; called by all ranks, which share the work.

    chosen: the images; None: `eval.members` of each of the first `eval.prompts` prompts. Where a
    scorer compares the images of a prompt, it must have equally many of each prompt.
    boundary: called after each sampled batch; all ranks have equally many.
    keep: called with each scored batch of this rank.
    """
    if chosen is None:
        chosen = samples(len(prompts.prompts[: config.eval.prompts or None]), config.eval.members)
    count, world = len(chosen), runtime.world_size
    # Images that a scorer compares stay on one rank, and reach it together.
    size = count // len({prompt for prompt, _ in chosen}) if rewards.grouped else 1
    places, sources = deal(chosen, world, size)
    share = [chosen[i] for i in sources[:, runtime.rank].tolist()]
    shown = (places < config.eval.images).any(1).numpy()
    done = 0
    pictures: list[np.ndarray] = []
    waiting: deque[tuple[PromptBatch, Future[Rewards]]] = deque()
    scored: list[Rewards] = []

    def finish() -> None:
        batch, future = waiting.popleft()
        scored.append(future.result())
        keep(batch, scored[-1])

    sampled = sample_images(runtime, backbone, prompts, share, config=config)
    for batch, pixels, finite in whole_groups(sampled, size):
        groups = batch.group_id.numpy()
        future = rewards.submit(pixels, batch.prompts, batch.metadata, finite, groups=groups)
        waiting.append((batch, future))
        pictures.append(pixels[shown[done : done + len(pixels)]])
        done += len(pixels)
        boundary()
        if len(waiting) > 1:  # one batch is scored while the next is sampled
            finish()
    while waiting:
        finish()
    rewards.settle(runtime.all_gather_object)
    columns = [batch.columns(rewards.extras) for batch in scored]
    rows = torch.cat([torch.stack(list(batch.values()), 1) for batch in columns])
    table = gather_rows(runtime, rows, places.T.flatten())[:count]
    images = torch.from_numpy(np.concatenate(pictures))
    order = places[shown].T.flatten().argsort().argsort()  # the places alone may have gaps
    return Evaluation(
        {name: column.clone() for name, column in zip(columns[0], table.unbind(1), strict=True)},
        gather_rows(runtime, images, order)[: min(config.eval.images, count)].numpy(),
        [prompts.prompts[i] for i, _ in chosen],
        rewards.macros,
    )
