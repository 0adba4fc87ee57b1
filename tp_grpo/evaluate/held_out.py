"""Seeded ODE evaluation on a prompt set: the same prompts and noise each time, for any batch size and rank count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tp_grpo.data.prompts import PromptSet
from tp_grpo.images import finite_images, to_uint8
from tp_grpo.method.stats import macro_means, summarise
from tp_grpo.models.base import Backbone
from tp_grpo.models.conditions import conditions_of, encode_once
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.train.rollout import ode_images
from tp_grpo.types import PromptBatch


@dataclass(frozen=True)
class Evaluation:
    """n = prompts x members images: the first member of every prompt, then the second.

    scores: "total", each scorer and its extras -> (n,) fp32; images: the first few as (m, H, W, 3) uint8; macros: see
    `RewardSet`.
    """

    scores: dict[str, Tensor]
    images: np.ndarray
    prompts: list[str]
    macros: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Mean over prompts, and its standard error (suffix _se), of each score that was had; and the macro means."""
        report = summarise(self.scores, self.prompts)
        for name, (mean, error) in macro_means(self.scores, self.prompts, self.macros).items():
            report[name], report[f"{name}_se"] = mean, error
        return report


def samples(count: int, members: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt index and member of every image of an evaluation: the first member of every prompt, then the second."""
    return np.tile(np.arange(count), members), np.arange(members).repeat(count)


def sample_images(
    runtime: Runtime,
    backbone: Backbone,
    prompts: PromptSet,
    ids: np.ndarray,
    members: np.ndarray,
    *,
    config: Any,
) -> Iterator[tuple[PromptBatch, np.ndarray, np.ndarray]]:
    """ODE images of the samples (ids, members) in order, by batch: pixels (b, H, W, 3) uint8, and which are finite."""
    conditions = encode_once(backbone, [prompts.prompts[i] for i in ids])
    size = config.eval.batch_size
    share = min(size, len(ids)) * runtime.world_size
    for start in runtime.bar(range(0, len(ids), size), "evaluate", unit="images", each=share):
        batch = prompts.batch(
            ids[start : start + size].tolist(), members[start : start + size].tolist()
        )
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
    config: Any,
    boundary: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Sample and score `eval.members` images of each of the first `eval.prompts` prompts.

    boundary: called after each batch; all ranks have equally many.
    """
    settings = config.eval
    ids, members = samples(min(settings.prompts or len(prompts), len(prompts)), settings.members)
    # Ranks take strided samples; all take equally many, the surplus repeating the last sample.
    last = len(ids) - 1
    own = np.arange(
        runtime.rank, len(ids) + (-len(ids)) % runtime.world_size, runtime.world_size
    ).clip(max=last)
    pending, pictures = [], []
    for batch, pixels, finite in sample_images(
        runtime, backbone, prompts, ids[own], members[own], config=config
    ):
        pending.append(rewards.submit(pixels, batch.prompts, batch.metadata, finite))
        pictures.append(pixels)
        boundary()
    done = [future.result() for future in pending]
    rewards.settle(runtime.all_gather_object)
    columns = columns_of(done, rewards.scorers, rewards.extras)
    scores = {name: _interleave(runtime, values)[: len(ids)] for name, values in columns.items()}
    shown = torch.from_numpy(np.concatenate(pictures)[own < settings.images]).to(runtime.device)
    first = _images(runtime, shown, min(settings.images, len(ids)))
    return Evaluation(scores, first, [prompts.prompts[i] for i in ids], rewards.macros)


def columns_of(
    done: list[Rewards], scorers: Iterable[str], extras: Iterable[str]
) -> dict[str, Tensor]:
    """ "total", each scorer and these extras -> (n,), batches joined."""
    columns = {"total": torch.cat([d.total for d in done])}
    columns |= {name: torch.cat([d.scores[name] for d in done]) for name in scorers}
    return columns | {name: torch.cat([d.extra(name) for d in done]) for name in extras}


def _interleave(runtime: Runtime, values: Tensor) -> Tensor:
    """Strided shares of all ranks back in order."""
    gathered = runtime.gather(values.to(runtime.device)).cpu()
    return gathered.reshape(runtime.world_size, -1).T.reshape(-1)


def _images(runtime: Runtime, own: Tensor, count: int) -> np.ndarray:
    padded = runtime.accelerator.pad_across_processes(own)
    gathered = runtime.gather(padded).cpu()
    shares = (
        gathered.reshape(runtime.world_size, -1, *gathered.shape[1:]).transpose(0, 1).flatten(0, 1)
    )
    return shares[:count].numpy()
