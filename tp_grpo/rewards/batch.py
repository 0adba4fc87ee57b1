"""The images of a scorer's batch: which of them are equal, and which no call may separate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from reward_models import Metadata


@dataclass(frozen=True)
class Batch:
    """images (n, H, W, 3) uint8, prompts and metadata of length n.

    groups (n,) int64: equal for the images of one group; None for a scorer of single images.
    """

    images: np.ndarray
    prompts: list[str]
    metadata: list[Metadata]
    groups: np.ndarray | None = None

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The first row of each distinct sample (m,), and which of them each row equals (n,).

        With groups every row counts as distinct.
        """
        if self.groups is not None:
            return np.arange(len(self.images)), np.arange(len(self.images))
        samples = zip(self.images, self.prompts, self.metadata, strict=True)
        number: dict[bytes, int] = {}
        equals = [number.setdefault(_key(*sample), len(number)) for sample in samples]
        inverse = np.array(equals, dtype=np.int64)
        return np.unique(inverse, return_index=True)[1], inverse

    @property
    def units(self) -> list[np.ndarray]:
        """What no call may split, as places among the distinct rows: a row each, or a group each.

        Groups are in the order of their first images.
        """
        if self.groups is None:
            return list(np.arange(len(self.distinct[0]))[:, None])
        return [np.flatnonzero(self.groups == group) for group in dict.fromkeys(self.groups)]

    def take(self, rows: np.ndarray) -> tuple[Any, ...]:
        """The rows' images, prompts and metadata, and their groups if there are any."""
        texts = [self.prompts[i] for i in rows], [self.metadata[i] for i in rows]
        groups = () if self.groups is None else (self.groups[rows],)
        return self.images[rows], *texts, *groups


def _key(image: np.ndarray, prompt: str, metadata: Metadata) -> bytes:
    rest = hashlib.blake2b(repr((image.shape, prompt, metadata)).encode()).digest()
    return hashlib.blake2b(np.ascontiguousarray(image).data, key=rest).digest()
