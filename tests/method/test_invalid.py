"""A score that never came: what follows from it is advantage 0, and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tp_grpo.method import credit
from tp_grpo.method.advantage import group_normalize

NAN = float("nan")
LADDERS = st.integers(1, 4).flatmap(
    lambda K: st.lists(
        st.lists(
            st.one_of(st.just(NAN), st.floats(-3, 3, width=32)), min_size=K + 1, max_size=K + 1
        ),
        min_size=1,
        max_size=8,
    )
)


def invalid(ladder: Tensor, method: str) -> Tensor:
    """Steps (B, K) that must not teach: their score, or one of their entries, is missing."""
    if method == "terminal":
        return ladder[:, -1:].isnan().expand(-1, ladder.shape[1] - 1)
    return ladder[:, 1:].isnan() | ladder[:, :-1].isnan()


@given(LADDERS, st.sampled_from(sorted(credit.METHODS)), st.booleans(), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_a_nan_never_reaches_an_advantage(
    rows: list, method: str, global_std: bool, groups: int
) -> None:
    ladder = torch.tensor(rows)
    group_id = torch.arange(len(rows)) % groups
    steps = credit.assign(method, ladder, steps=ladder.shape[1] - 1, group_id=group_id)
    advantage = group_normalize(steps.reward, group_id, global_std=global_std, clip=5.0)
    assert advantage.isfinite().all()
    lost = invalid(ladder, method)
    assert (advantage[lost] == 0).all() and not steps.turning[lost].any()


@given(LADDERS, st.sampled_from(["terminal", "incremental"]))
@settings(max_examples=100, deadline=None)
def test_the_invalid_leave_the_statistics_of_their_group(rows: list, method: str) -> None:
    ladder = torch.tensor(rows)
    whole = ~ladder.isnan().any(1)
    group_id = torch.zeros(len(rows), dtype=torch.int64)
    spoilt = torch.where(whole[:, None], ladder, torch.full_like(ladder, NAN))
    steps = ladder.shape[1] - 1
    with_lost = group_normalize(credit.assign(method, spoilt, steps=steps).reward, group_id)
    if whole.any():
        without = group_normalize(
            credit.assign(method, ladder[whole], steps=steps).reward, group_id[whole]
        )
        torch.testing.assert_close(with_lost[whole], without)
    assert (with_lost[~whole] == 0).all()
