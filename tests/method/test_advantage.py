"""Group-relative advantages against golden values and a plain loop."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tp_grpo.method.advantage import group_normalize, group_std, whiten, zero_std_share

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())[
    "advantages"
]
NAN = math.nan


def float64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden(case):
    reward, group = float64(case["step_rewards"]), torch.tensor(case["group"])
    got = group_normalize(reward, group, global_std=case["global_std"])
    # The expected values have 9 decimals.
    torch.testing.assert_close(got, float64(case["advantages"]), rtol=1e-6, atol=1e-9)


def plain_loop(reward: list[float], group: list[int], global_std: bool) -> list[float]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def std(values: list[float]) -> float:
        return math.sqrt(mean([(v - mean(values)) ** 2 for v in values]))

    valid = [r for r in reward if not math.isnan(r)]
    out = []
    for r, g in zip(reward, group, strict=True):
        mine = [s for s, h in zip(reward, group, strict=True) if h == g and not math.isnan(s)]
        out.append(
            0.0 if math.isnan(r) else (r - mean(mine)) / (std(valid if global_std else mine) + 1e-4)
        )
    return out


entries = st.tuples(st.floats(-3, 3, width=32) | st.just(NAN), st.sampled_from([-7, 0, 3, 10**12]))


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(entries, min_size=1, max_size=12), global_std=st.booleans())
def test_plain_loop(rows, global_std):
    rewards, groups = [r for r, _ in rows], [g for _, g in rows]
    got = group_normalize(float64(rewards)[:, None], torch.tensor(groups), global_std=global_std)[
        :, 0
    ]
    expected = float64(plain_loop(rewards, groups, global_std))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_columns_groups_and_order_are_independent():
    torch.manual_seed(0)
    reward, group = torch.randn(24, 3).double(), torch.arange(24) % 4
    whole = group_normalize(reward, group)
    torch.testing.assert_close(group_normalize(reward[:, 1:2], group), whole[:, 1:2])
    torch.testing.assert_close(
        group_normalize(reward[group == 2], group[group == 2]), whole[group == 2]
    )
    rows = torch.randperm(24)
    torch.testing.assert_close(group_normalize(reward[rows], group[rows]), whole[rows])
    torch.testing.assert_close(whole[group == 1].mean(0), torch.zeros(3).double())
    torch.testing.assert_close(
        whole[group == 1].std(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-3
    )


def test_equal_rewards_and_lone_members_get_exactly_zero():
    reward, group = (
        torch.tensor([0.1] * 7 + [0.9, 0.3, NAN])[:, None],
        torch.tensor([0] * 7 + [1, 2, 2]),
    )
    assert torch.equal(group_normalize(reward, group), torch.zeros(10, 1))
    assert (
        group_normalize(torch.full((3, 2), NAN), torch.zeros(3, dtype=torch.int64)).tolist()
        == [[0, 0]] * 3
    )


def test_nan_leaves_the_others_as_if_it_were_not_there():
    torch.manual_seed(0)
    reward, group = torch.randn(12, 2).double(), torch.arange(12) % 3
    holes = reward.clone()
    holes[4, 1] = NAN
    for global_std in (False, True):
        got = group_normalize(holes, group, global_std=global_std)
        present = torch.arange(12) != 4
        expected = group_normalize(reward[present], group[present], global_std=global_std)
        torch.testing.assert_close(got[present, 1], expected[:, 1])
        assert got[4, 1] == 0 and got[4, 0] != 0


def test_clip_and_dtype():
    reward, group = torch.tensor([0.0] * 30 + [1.0])[:, None], torch.zeros(31, dtype=torch.int64)
    free, clipped = group_normalize(reward, group), group_normalize(reward, group, clip=5.0)
    assert free.max() > 5 and clipped.max() == 5 and clipped.dtype == torch.float32
    assert torch.equal(clipped[:30], free[:30])
    assert torch.equal(group_normalize(-reward, group, clip=5.0), -clipped)


def test_zero_std_share():
    group = torch.tensor([5, 5, 5, 9, 9, 2])
    reward = torch.tensor([[0.1, 1], [0.1, 2], [0.1, NAN], [0.3, NAN], [0.2, 4], [7, NAN]])
    share = zero_std_share(reward, group)
    assert share.shape == () and share.item() == pytest.approx(4 / 6)
    assert zero_std_share(torch.randn(8, 2), torch.arange(8) // 2) == 0


def test_shapes_are_checked():
    for reward, group in ((torch.zeros(3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(2))):
        for function in (group_normalize, group_std, zero_std_share):
            with pytest.raises(ValueError, match=r"must be \(N, K\) and \(N,\)"):
                function(reward, group)


def test_group_std_is_averaged_over_groups_and_columns_that_have_a_reward():
    reward = float64([[1.0, 5.0], [0.0, 0.0], [3.0, NAN], [0.0, 4.0], [NAN, 0.0]])
    # Group 7: population std 1 and, of one member, 0; group 2: 0 and that of 0, 4, 0.
    expected = (1 + 0 + 0 + math.sqrt(32 / 9)) / 4
    assert group_std(reward, torch.tensor([7, 2, 7, 2, 2])).item() == pytest.approx(
        expected, abs=1e-12
    )
    assert math.isnan(group_std(float64([[NAN]]), torch.tensor([1])).item())


# Three groups of two, at two fork steps: 1 and 3, 10 and 16, 0 and 4.
FORKED = float64([[1.0], [3.0], [10.0], [16.0], [0.0], [4.0]])
FORKED_GROUP, FORK = torch.tensor([7, 7, 1, 1, 4, 4]), torch.tensor([5, 5, 5, 5, 2, 2])


def test_a_std_id_pools_the_deviations_from_group_means() -> None:
    got = group_normalize(FORKED, FORKED_GROUP, global_std=True, std_id=FORK, eps=0.0)
    root = math.sqrt((1 + 1 + 9 + 9) / 4)
    expected = [-1 / root, 1 / root, -3 / root, 3 / root, -1.0, 1.0]
    torch.testing.assert_close(got[:, 0], float64(expected))


def test_a_std_id_means_nothing_where_the_std_is_the_groups() -> None:
    one = group_normalize(FORKED, FORKED_GROUP, std_id=FORK)
    assert torch.equal(one, group_normalize(FORKED, FORKED_GROUP))


def test_a_std_id_leaves_out_what_is_missing() -> None:
    holes = FORKED.clone()
    holes[3] = NAN  # its mate is then alone, deviates by 0, and counts
    got = group_normalize(holes, FORKED_GROUP, global_std=True, std_id=FORK, eps=0.0)
    root = math.sqrt((1 + 1 + 0) / 3)
    torch.testing.assert_close(got[:, 0], float64([-1 / root, 1 / root, 0, 0, -1, 1]))


def test_equal_rewards_at_a_fork_step_teach_nothing() -> None:
    flat = float64([[1.0], [1.0], [2.0], [2.0], [0.0], [4.0]])
    got = group_normalize(flat, FORKED_GROUP, global_std=True, std_id=FORK)
    assert got[:4].any().item() is False


@pytest.mark.parametrize("global_std", [False, True])
def test_a_scale_takes_the_place_of_the_std(global_std: bool) -> None:
    got = group_normalize(FORKED, FORKED_GROUP, global_std=global_std, scale=0.1)
    torch.testing.assert_close(got[:, 0], float64([-0.1, 0.1, -0.3, 0.3, -0.2, 0.2]))


def test_a_scaled_advantage_is_clipped_and_0_where_the_reward_is_missing() -> None:
    holes = FORKED.clone()
    holes[0] = NAN
    got = group_normalize(holes, FORKED_GROUP, scale=0.1, clip=0.25)
    torch.testing.assert_close(got[:, 0], float64([0, 0, -0.25, 0.25, -0.2, 0.2]))


def test_whitened_advantages_have_mean_0_and_std_1_over_all_that_is_known() -> None:
    advantage = float64([[1.0, 5.0], [3.0, 99.0]])
    known = torch.tensor([[True, True], [True, False]])
    # 1, 3 and 5: mean 3, population std sqrt(8 / 3).
    unit = 2 / math.sqrt(8 / 3)
    expected = float64([[-unit, unit], [0.0, 0.0]])
    torch.testing.assert_close(whiten(advantage, known, eps=0.0), expected)


def test_whitening_keeps_the_dtype_and_equal_advantages_are_0() -> None:
    got = whiten(torch.full((3, 1), 0.1), torch.ones(3, 1, dtype=torch.bool))
    assert got.dtype == torch.float32
    assert got.tolist() == [[0.0]] * 3
