"""How the ranks share an evaluation's images, and how a prompt's images stay together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tp_grpo.evaluate.held_out import samples
from tp_grpo.evaluate.sharing import Sampled, deal, whole_groups
from tp_grpo.types import PromptBatch


def test_single_samples_are_dealt_in_turn_and_the_surplus_repeats_the_last() -> None:
    places, sources = deal(samples(5, 1), 2, 1)
    assert places.T.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert sources.T.tolist() == [[0, 2, 4], [1, 3, 4]]


def test_prompts_are_dealt_with_all_their_samples() -> None:
    chosen = samples(3, 2)  # prompts 0 1 2 0 1 2
    places, sources = deal(chosen, 2, 2)
    assert places.T.tolist() == [[0, 3, 2, 5], [1, 4, 6, 7]]
    assert sources.T.tolist() == [[0, 3, 2, 5], [1, 4, 2, 5]], "the surplus is a whole prompt"


@pytest.mark.parametrize("count, members, world", [(1, 3, 4), (7, 2, 3), (4, 5, 2), (6, 1, 4)])
@pytest.mark.parametrize("together", [True, False])
def test_every_sample_has_one_place(count: int, members: int, world: int, together: bool) -> None:
    chosen = samples(count, members)
    size = members if together else 1
    places, sources = deal(chosen, world, size)
    assert sorted(places.flatten().tolist()) == list(range(places.numel()))
    real = places < len(chosen)
    assert (places[real] == sources[real]).all()
    for rank in range(world):
        prompts = [chosen[i][0] for i in sources[:, rank].tolist()]
        assert all(len(set(prompts[i : i + size])) == 1 for i in range(0, len(prompts), size))
        firsts = prompts[::size]
        assert size == 1 or len(set(firsts)) == len(firsts), "no rank has a prompt twice"


@pytest.mark.parametrize(
    "batch, size, expected",
    [(4, 1, [4, 4, 4]), (1, 3, [3] * 4), (4, 3, [3, 3, 6]), (5, 6, [6, 6]), (12, 4, [12])],
)
def test_batches_end_where_a_group_ends(batch: int, size: int, expected: list[int]) -> None:
    def batches() -> Iterator[Sampled]:
        for start in range(0, 12, batch):
            rows = torch.arange(start, min(start + batch, 12))
            texts, data = [f"{i}" for i in rows.tolist()], [{"i": i} for i in rows.tolist()]
            pixels = np.broadcast_to(
                rows.numpy().astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3)
            )
            yield PromptBatch(texts, data, rows // size, rows % size), pixels, rows.numpy() % 5 > 0

    whole = list(whole_groups(batches(), size))
    assert [len(pixels) for _, pixels, _ in whole] == expected
    rows = torch.arange(12)
    assert [p for b, _, _ in whole for p in b.prompts] == [f"{i}" for i in range(12)]
    assert [m["i"] for b, _, _ in whole for m in b.metadata] == list(range(12))
    assert torch.equal(torch.cat([b.group_id for b, _, _ in whole]), rows // size)
    assert torch.equal(torch.cat([b.member for b, _, _ in whole]), rows % size)
    assert np.concatenate([pixels[:, 0, 0, 0] for _, pixels, _ in whole]).tolist() == list(
        range(12)
    )
    assert np.concatenate([f for *_, f in whole]).tolist() == [i % 5 > 0 for i in range(12)]
