"""Groups that a plan splits over batches and ranks are brought together before they are scored."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from tests.scorers import Contrast
from tp_grpo.plan import Plan, make_plan
from tp_grpo.rewards.reward_set import RewardSet
from tp_grpo.settings import Settings
from tp_grpo.train.gather import Gathered, gather
from tp_grpo.train.rollout import Pending
from tp_grpo.train.whole_groups import WholeGroups
from tp_grpo.types import PromptBatch

BRIGHTNESS, CONTRAST = "tests.scorers:Brightness", "tests.scorers:Contrast"
GROUPS, SIZE, LENGTH = 3, 4, 3


class World:
    """Ranks on threads: their collectives meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size, self.items = size, cast(list[Any], [None] * size)
        self.barrier = threading.Barrier(size, timeout=30)
        self.gathers = 0

    def meet(self, rank: int, item: Any) -> list[Any]:
        self.items[rank] = item
        self.barrier.wait()
        items = list(self.items)
        self.barrier.wait()
        return items


class Rank:
    """What `WholeGroups` and `gather` need of a Runtime."""

    device = torch.device("cpu")

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.world_size = world, rank, world.size

    def gather(self, rows: Tensor) -> Tensor:
        self.world.gathers += self.rank == 0
        return torch.cat(self.world.meet(self.rank, rows))

    def all_gather_object(self, item: Any) -> list[Any]:
        return [pickle.loads(data) for data in self.world.meet(self.rank, pickle.dumps(item))]


@pytest.fixture
def plan_of(smoke: Callable[..., ConfigDict]) -> Callable[..., Plan]:
    """The plan of 3 groups of 4 with ladders of 3."""

    def make(ranks: int, batch_size: int, **fields: Any) -> Plan:
        config = smoke(
            sample__groups_per_epoch=GROUPS,
            sample__group_size=SIZE,
            sample__batch_size=batch_size,
            train__updates_per_epoch=1,
            train__batch_size=0,
            **fields,
        )
        plan = make_plan(Settings.read(config), ranks)
        assert (plan.ladder, plan.images) == (LENGTH, 12)
        return plan

    return make


def ladder_images(row: int) -> np.ndarray:
    """The images (J, 2, 2, 3) of a sample, each of one value that no other has."""
    values = row * LENGTH + np.arange(LENGTH) * 7 % 5
    return np.broadcast_to(values[:, None, None, None], (LENGTH, 2, 2, 3)).astype(np.uint8)


def epoch(
    plan: Plan,
    missing: tuple[tuple[int, int], ...] = (),
    images_of: Callable[[int, int], np.ndarray] = lambda row, batch: ladder_images(row),
) -> tuple[list[Gathered], World, list[RewardSet]]:
    """What each rank gathers; missing: (row, column) of the images that are not finite."""
    world = World(plan.world_size)
    size = 0 if missing else SIZE
    scorers = {BRIGHTNESS: 2.0, CONTRAST: {"weight": 1.0, "size": size}}
    sets = [RewardSet(scorers) for _ in range(world.size)]
    results: list[Any] = [None] * world.size

    def work(rank: int) -> None:
        runtime: Any = Rank(world, rank)
        whole = WholeGroups(runtime, plan, sets[rank])
        pending = []
        for number, rows in enumerate(plan.rows(rank)):
            images = np.stack([images_of(row, number) for row in rows])
            finite = np.array([[(row, j) not in missing for j in range(LENGTH)] for row in rows])
            groups = [row // SIZE for row in rows]
            texts, facts = [f"prompt {g}" for g in groups], [{"group": g} for g in groups]
            none = torch.empty(0)
            batch = PromptBatch(texts, facts, none, none)
            flat = images.reshape(-1, *images.shape[2:])
            n = len(flat)
            scores = sets[rank].submit(flat, [""] * n, [{}] * n, finite.flatten(), grouped=False)
            place = torch.arange(n).reshape(-1, LENGTH)
            compared = whole.add(batch, images, finite)
            rollout: Any = None
            pending.append(Pending(rollout, scores, place, none, none, None, compared))
        rewards = [p.finish() for p in pending]
        sets[rank].settle(runtime.all_gather_object)
        results[rank] = gather(runtime, plan, [11, 5, 8], rewards, sets[rank].extras)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results, world, sets


def expected(missing: tuple[tuple[int, int], ...] = ()) -> Tensor:
    """(N, J): each image's brightness minus the mean of its group at its column."""
    value = torch.tensor([ladder_images(row)[:, 0, 0, 0].tolist() for row in range(12)]) / 255
    for row, column in missing:
        value[row, column] = torch.nan
    groups = value.reshape(GROUPS, SIZE, LENGTH)
    return (groups - groups.nanmean(1, keepdim=True)).reshape(12, LENGTH)


WORLDS = [(1, 12), (1, 4), (1, 3), (1, 1), (2, 6), (2, 2), (2, 1), (3, 2), (4, 3), (4, 1), (12, 1)]


@pytest.mark.parametrize("ranks, batch_size", WORLDS)
def test_every_plan_compares_the_same_images(
    plan_of: Callable[..., Plan], ranks: int, batch_size: int
) -> None:
    results, _, _ = epoch(plan_of(ranks, batch_size))
    for gathered in results:
        torch.testing.assert_close(gathered.scores[CONTRAST], expected(), rtol=0, atol=1e-6)
        total = 2 * gathered.scores[BRIGHTNESS] + gathered.scores[CONTRAST]
        torch.testing.assert_close(gathered.ladder, total)
        assert (gathered.extras[f"{CONTRAST}/share"] == 1 / SIZE).all()
        assert gathered.group_id.tolist() == [11] * 4 + [5] * 4 + [8] * 4


def test_a_group_is_scored_once_on_the_rank_of_its_first_image(
    plan_of: Callable[..., Plan],
) -> None:
    _, _, sets = epoch(plan_of(4, 3))  # ranks begin at rows 0, 3, 6 and 9; groups at 0, 4 and 8
    calls = [cast(Contrast, rewards.scorers[CONTRAST]).calls for rewards in sets]
    assert [len(each) for each in calls] == [1, 1, 1, 0]
    assert calls[0] == [[0] * SIZE + [1] * SIZE + [2] * SIZE], "a column is a group of its own"


@pytest.mark.parametrize("ranks, batch_size", [(1, 1), (3, 2)])
def test_groups_that_no_plan_splits_over_ranks_are_not_sent(
    plan_of: Callable[..., Plan], ranks: int, batch_size: int
) -> None:
    _, world, _ = epoch(plan_of(ranks, batch_size))
    assert world.gathers == 1, "of the scores"


@pytest.mark.parametrize("ranks, batch_size", [(1, 12), (4, 1)])
def test_a_missing_image_is_missing_for_its_column_alone(
    plan_of: Callable[..., Plan], ranks: int, batch_size: int
) -> None:
    missing = ((1, 2), (7, 0))
    results, _, _ = epoch(plan_of(ranks, batch_size), missing)
    score = results[0].scores[CONTRAST]
    assert not bool(score[1, 2].isfinite()) and int(score.isnan().sum()) == 2
    want = expected(missing)
    whole = torch.ones(12, LENGTH, dtype=torch.bool)
    whole[0:4, 2] = whole[4:8, 0] = False
    torch.testing.assert_close(score[whole], want[whole], rtol=0, atol=1e-6)


def test_a_shared_baseline_is_one_image_for_the_group(plan_of: Callable[..., Plan]) -> None:
    """Each batch has made it anew, and may have rounded it otherwise."""

    def rounded(row: int, batch: int) -> np.ndarray:
        images = ladder_images(row).copy()
        images[0] = 100 + batch
        return images

    plan = plan_of(2, 1, sample__same_latent=True)
    assert plan.shares_baseline
    results, _, _ = epoch(plan, images_of=rounded)
    score = results[0].scores[CONTRAST]
    assert (score[:, 0].abs() < 1e-6).all()
    torch.testing.assert_close(score[:, 1:], expected()[:, 1:], rtol=0, atol=1e-6)
    other, _, _ = epoch(replace(plan, same_latent=False), images_of=rounded)
    assert (other[0].scores[CONTRAST][:, 0].abs() > 1e-6).any()
