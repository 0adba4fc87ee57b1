"""Who is named when ranks differ. What whole runs do about it is in tests/faults."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tp_grpo.ranks import agreement
from tp_grpo.ranks.agreement import DisagreementError


class World:
    """A rank among others whose shared objects are known."""

    def __init__(self, others: list[Any]) -> None:
        self.others, self.world_size = others, len(others) + 1

    def all_gather_object(self, item: Any) -> list[Any]:
        return [*self.others, item]


def test_the_rank_outside_of_the_majority_is_named() -> None:
    others = [{"a": "1", "b": "'x'"}, {"a": "2", "b": "'x'"}]
    with pytest.raises(DisagreementError) as raised:
        agreement.check(World(others), {"a": 1, "b": "x"}, "look at a")  # type: ignore[arg-type]
    assert (
        str(raised.value) == "the ranks disagree:\n  rank 1 has a 2, where rank 0 has 1\nlook at a"
    )


def test_of_two_rank_0_counts_and_equals_pass() -> None:
    with pytest.raises(DisagreementError, match="rank 1 has a 7, where rank 0 has 6"):
        agreement.check(World([{"a": "6"}]), {"a": 7}, "")  # type: ignore[arg-type]
    agreement.check(World([{"a": "7"}]), {"a": 7}, "")  # type: ignore[arg-type]


def test_a_message_stays_readable() -> None:
    names = [f"field {i}" for i in range(15)]
    with pytest.raises(DisagreementError) as raised:
        agreement.check(World([dict.fromkeys(names, "1" * 999)]), dict.fromkeys(names, 2), "advice")  # type: ignore[arg-type]
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 + agreement.MAX_SHOWN + 2
    assert lines[-2:] == ["  and 5 more", "advice"]
    assert max(map(len, lines)) < 300


def test_a_checksum_sees_the_last_bit_and_no_order_of_adding() -> None:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    (before,) = agreement.checksums([weights])
    assert agreement.checksums([weights.flip(0)]) == [before]
    weights[500] = weights[500].nextafter(torch.tensor(torch.inf))
    (after,) = agreement.checksums([weights])
    assert abs(after - before) == 1
    assert (
        agreement.checksums([torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([torch.nan])])[
            0
        ]
        == 0
    )
