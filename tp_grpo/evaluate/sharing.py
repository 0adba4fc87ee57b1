"""How the ranks share an evaluation's images, and how a prompt's images stay together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tp_grpo.types import PromptBatch

Sample = tuple[int, int]  # (prompt index, member)
Sampled = tuple[PromptBatch, np.ndarray, np.ndarray]  # pixels (b, H, W, 3) uint8, finite (b,) bool


def deal(chosen: Sequence[Sample], world: int, size: int) -> tuple[Tensor, Tensor]:
    """Deal the samples to the ranks in turn: one by one, or all `size` of a prompt together.

    -> places and sources (n, world) int64, a column for each rank. A place is where a result
    belongs; those from len(chosen) on are surplus, which gives all ranks equally many. A source is
    the place of the sample to make; the surplus repeats the last sample, or the last prompt's.
    """
    groups: dict[int, list[int]] = {}
    for place, (prompt, _) in enumerate(chosen):
        groups.setdefault(prompt if size > 1 else place, []).append(place)
    assert all(len(group) == size for group in groups.values())
    sources = torch.tensor(list(groups.values()))
    missing = -len(sources) % world
    surplus = len(chosen) + torch.arange(missing * size).reshape(missing, size)
    places = torch.cat([sources, surplus])
    sources = torch.cat([sources, sources[-1:].expand(missing, size)])

    def columns(of_groups: Tensor) -> Tensor:
        return of_groups.reshape(-1, world, size).transpose(1, 2).reshape(-1, world)

    return columns(places), columns(sources)


def whole_groups(batches: Iterable[Sampled], size: int) -> Iterator[Sampled]:
    """The same images in batches that end where a group ends; each `size` images are a group."""
    held: Sampled | None = None
    for sampled in batches:
        held = _join(held, sampled) if held else sampled
        end = len(held[1]) // size * size
        if end:
            yield _cut(held, slice(end))
        held = _cut(held, slice(end, None)) if end < len(held[1]) else None


def _cut(sampled: Sampled, rows: slice) -> Sampled:
    batch, pixels, finite = sampled
    part = PromptBatch(
        batch.prompts[rows], batch.metadata[rows], batch.group_id[rows], batch.member[rows]
    )
    return part, pixels[rows], finite[rows]


def _join(first: Sampled, second: Sampled) -> Sampled:
    a, b = first[0], second[0]
    batch = PromptBatch(
        a.prompts + b.prompts,
        a.metadata + b.metadata,
        torch.cat([a.group_id, b.group_id]),
        torch.cat([a.member, b.member]),
    )
    return batch, np.concatenate([first[1], second[1]]), np.concatenate([first[2], second[2]])
