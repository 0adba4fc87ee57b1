"""The images of each prompt, brought together for the scorers that compare them."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import torch

from reward_models import Metadata
from tp_grpo.plan import Plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.types import PromptBatch


class WholeGroups:
    """Scores each group of an epoch as soon as its last image is sampled, on any rank.

    A group belongs to the rank that samples its first image. The images at one column of the
    group's ladders are compared with each other, never those of two columns.
    """

    def __init__(self, runtime: Runtime, plan: Plan, rewards: RewardSet) -> None:
        self.runtime, self.plan, self.rewards = runtime, plan, rewards
        self._rows = [plan.rows(rank) for rank in range(plan.world_size)]
        holder = {row: rank for rank, rows in enumerate(self._rows) for b in rows for row in b}
        self._owner = [holder[group * plan.group_size] for group in range(plan.groups)]
        self._split = any(self._owner[row // plan.group_size] != r for row, r in holder.items())
        self._ladders: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by row; not yet submitted
        self._texts: dict[int, tuple[str, Metadata]] = {}
        self._batches = 0  # added

    def add(
        self, batch: PromptBatch, images: np.ndarray, finite: np.ndarray
    ) -> dict[int, Future[Rewards]]:
        """Add the next batch; called by all ranks, for it is a collective if groups are split.

        images (B, J, H, W, 3) uint8, J the length of a ladder; finite (B, J) bool. Returns the
        scores (G x J,) of this rank's groups that are now complete, by their place in the epoch.
        """
        rank, size = self.runtime.rank, self.plan.group_size
        ranks = range(self.plan.world_size) if self._split else [rank]
        rows = [row for r in ranks for row in self._rows[r][self._batches]]
        sampled = zip(self._rows[rank][self._batches], batch.prompts, batch.metadata, strict=True)
        self._texts |= {row // size: (prompt, metadata) for row, prompt, metadata in sampled}
        self._batches += 1
        if self._split:
            images, finite = self._gather(images), self._gather(finite)
        for row, ladder, valid in zip(rows, images, finite, strict=True):
            if self._owner[row // size] == rank:
                self._ladders[row] = ladder.copy(), valid  # a view would keep all ranks' images
        return {
            group: self._submit(group)
            for group in dict.fromkeys(row // size for row in rows)
            if all(row in self._ladders for row in self._members(group))
        }

    def _members(self, group: int) -> range:
        """The rows of a group."""
        return range(group * self.plan.group_size, (group + 1) * self.plan.group_size)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """All ranks' (B, J, ...), rank by rank; a column at a time, to take little GPU memory."""

        def gather(column: np.ndarray) -> np.ndarray:
            own = torch.from_numpy(np.ascontiguousarray(column, dtype=np.uint8))
            return self.runtime.gather(own.to(self.runtime.device)).cpu().numpy()

        return np.stack([gather(column) for column in values.swapaxes(0, 1)], 1)

    def _submit(self, group: int) -> Future[Rewards]:
        members = [self._ladders.pop(row) for row in self._members(group)]
        images = np.stack([ladder for ladder, _ in members])
        finite = np.stack([valid for _, valid in members]).astype(bool)
        if self.plan.shares_baseline:  # one image, but each batch made it anew and rounded it anew
            images[:, 0], finite[:, 0] = images[0, 0], finite[0, 0]
        prompt, metadata = self._texts[group]
        size, length = finite.shape
        return self.rewards.submit(
            images.reshape(-1, *images.shape[2:]),
            [prompt] * finite.size,
            [metadata] * finite.size,
            finite.flatten(),
            trained_only=True,
            groups=np.tile(np.arange(length), size),
            grouped=True,
        )
