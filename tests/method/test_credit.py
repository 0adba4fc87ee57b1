"""Credit functions against golden values, a plain-loop restatement of the paper, and invariants."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tp_grpo.method import credit

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())["credit"]
OPTIONS = [{"constraint": c, "balance": b} for c in (True, False) for b in (True, False)]
NAN = math.nan


def ladder(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_ladder(rows: int, steps: int, seed: int = 0) -> Tensor:
    return torch.randn(
        rows, steps + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden(case):
    got = credit.turning_point(
        ladder(*case["rewards"]), constraint=case["constraint"], balance=case["balance"]
    )
    torch.testing.assert_close(got.reward, ladder(*case["step_rewards"]), rtol=1e-6, atol=1e-12)


def test_turning_points_by_hand():
    R = ladder([0.0, 1.0, 0.0, 2.0, 3.0])
    got = credit.turning_point(R, balance=False)
    assert got.increment.tolist() == [[1, -1, 2, 1]]
    assert got.turning.tolist() == [[True, False, True, False]]
    assert got.reward.tolist() == [[3, -1, 3, 1]]
    dip_at_the_end = ladder([0.0, 3.0, 1.0, 2.0])
    assert credit.turning_point(dip_at_the_end).turning.tolist() == [[False, False, False]]
    free = credit.turning_point(dip_at_the_end, constraint=False, balance=False)
    assert free.turning.tolist() == [[True, False, True]] and free.reward.tolist() == [[2, -2, 1]]


def test_balance_by_hand():
    R = ladder([0, 1, 2], [0, 1, 4], [0, 2, 3], [0, -1, -9], [5, 5, 5])
    got = credit.turning_point(R)
    assert got.turning[:, 0].tolist() == [False, True, False, True, False]
    assert got.reward.tolist() == [[1, 1], [4, 3], [2, 1], [-9, -8], [0, 0]]
    one_sided = credit.turning_point(R[:3])
    assert one_sided.turning[:, 0].tolist() == [True, True, True]


def restatement(
    R: list[list[float]], constraint: bool, balance: bool
) -> tuple[list[list[float]], list[list[bool]]]:
    """The paper's definition, one step at a time."""

    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    K = len(R[0]) - 1
    found: dict[tuple[int, int], float] = {}
    for b, r in enumerate(R):
        whole = sign(r[K] - r[0])
        for j in range(K):
            now, after = sign(r[j + 1] - r[j]), sign(r[K] - r[j + 1])
            if j == 0:
                is_turning = now * after > 0 if constraint else now * whole > 0
            else:
                before = sign(r[j] - r[j - 1])
                is_turning = before * whole < 0 and now * whole > 0
                if constraint:
                    is_turning = is_turning and now * after > 0
            if is_turning:
                found[b, j] = r[K] - r[j]
    if balance:
        positive = sorted((p for p in found if found[p] > 0), key=lambda p: -found[p])
        negative = sorted((p for p in found if found[p] < 0), key=lambda p: found[p])
        count = min(len(positive), len(negative))
        if count > 0:
            for p in positive[count:] + negative[count:]:
                del found[p]
    reward = [[found.get((b, j), r[j + 1] - r[j]) for j in range(K)] for b, r in enumerate(R)]
    return reward, [[(b, j) in found for j in range(K)] for b in range(len(R))]


quarters = st.integers(-4, 4).map(lambda n: n / 4)  # ties and flat steps
scores = st.floats(-30, 30, allow_nan=False, width=32)
ladders = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.sampled_from([quarters, scores]).flatmap(
        lambda entry: st.lists(
            st.lists(entry, min_size=shape[1] + 1, max_size=shape[1] + 1),
            min_size=shape[0],
            max_size=shape[0],
        )
    )
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=400, deadline=None)
@given(R=ladders)
@example(R=[[0.0, 1.0, 0.5, 1.0, 1.0]])
def test_restatement_and_invariants(options, R):
    tensor = ladder(*R)
    got = credit.turning_point(tensor, **options)
    reward, turning = restatement(R, **options)
    assert got.reward.tolist() == reward and got.turning.tolist() == turning

    flipped = credit.turning_point(-tensor, **options)
    assert torch.equal(flipped.reward, -got.reward) and torch.equal(flipped.turning, got.turning)
    torch.testing.assert_close(got.increment.sum(1), tensor[:, -1] - tensor[:, 0])
    if options["constraint"]:
        assert not got.turning[:, -1].any()
    if options["balance"]:
        aggregate = tensor[:, -1:] - tensor[:, :-1]
        positive, negative = (
            (got.turning & (aggregate > 0)).sum(),
            (got.turning & (aggregate < 0)).sum(),
        )
        assert positive == negative or min(positive, negative) == 0


def test_balance_keeps_equal_counts_of_the_largest():
    R = random_ladder(48, 6)
    R[:, -1] += 0.7
    before, after = credit.turning_point(R, balance=False), credit.turning_point(R)
    aggregate = R[:, -1:] - R[:, :-1]
    dropped = before.turning & ~after.turning
    assert dropped.any() and not (after.turning & ~before.turning).any()
    counts = [(after.turning & (aggregate * s > 0)).sum() for s in (1, -1)]
    assert counts[0] == counts[1] > 0
    kept_positive = aggregate[after.turning & (aggregate > 0)]
    assert aggregate[dropped].min() > 0 and aggregate[dropped].max() <= kept_positive.min()
    assert torch.equal(after.reward[dropped], R.diff(dim=1)[dropped])


@pytest.mark.parametrize("name", credit.METHODS)
def test_every_method_flips_permutes_and_ignores_a_constant(name):
    R, group = random_ladder(12, 5), torch.arange(4).repeat_interleave(3)
    got = credit.assign(name, R, steps=5, group_id=group)
    flipped = credit.assign(name, -R, steps=5, group_id=group)
    for field in ("reward", "increment"):
        assert torch.equal(getattr(flipped, field), -getattr(got, field))
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    permuted = credit.assign(name, R[rows], steps=5, group_id=group[rows])
    for field in ("reward", "increment", "turning"):
        torch.testing.assert_close(getattr(permuted, field), getattr(got, field)[rows])
    torch.testing.assert_close(got.increment.sum(1), R[:, -1] - R[:, 0])
    flat = credit.assign(name, torch.full((4, 6), 0.7).double(), steps=5, group_id=group[:4])
    assert not flat.increment.any() and not flat.turning.any()
    # What is the same for a whole group is no advantage: the value estimate leaves it in.
    assert torch.equal(
        flat.reward, torch.full((4, 5), 0.7 if name in ("terminal", "value") else 0.0).double()
    )


def test_terminal():
    R = random_ladder(3, 4)
    assert torch.equal(credit.terminal(R).reward, R[:, -1:].expand(3, 4))
    assert torch.equal(credit.terminal(R).increment, R.diff(dim=1))
    alone = credit.terminal(R[:, -1:], steps=4)
    assert torch.equal(alone.reward, R[:, -1:].expand(3, 4)) and not alone.increment.any()
    for ladder_, steps in ((R[:, :1], None), (R[:, :1], 0), (R, 3)):
        with pytest.raises(ValueError, match=r"ladder of shape \(3, "):
            credit.terminal(ladder_, steps=steps)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("entry", range(6))
def test_nan_stays_where_it_is(options, entry):
    clean = random_ladder(8, 5, seed=3)
    R = clean.clone()
    R[2, entry] = NAN
    got = credit.turning_point(R, **options)
    others = torch.arange(8) != 2
    expected = credit.turning_point(clean[others], **options)
    touched = [j for j in (entry - 1, entry) if 0 <= j < 5]
    assert got.reward.isnan().nonzero().tolist() == [[2, j] for j in touched]
    assert not got.turning[2, touched].any()
    assert not got.turning[2].any() or entry not in (0, 5)
    if not options["balance"]:
        assert torch.equal(got.reward[others], expected.reward)
        assert torch.equal(got.turning[others], expected.turning)


def test_nan_rows_do_not_disturb_the_balance():
    R = random_ladder(24, 5)
    unknown = torch.full((3, 6), NAN).double()
    got, expected = credit.turning_point(torch.cat([unknown, R])), credit.turning_point(R)
    assert torch.equal(got.reward[3:], expected.reward) and torch.equal(
        got.turning[3:], expected.turning
    )
    assert got.reward[:3].isnan().all() and not got.turning[:3].any()


def test_nan_in_the_other_methods():
    R = ladder([0, 1, NAN, 3], [0, 1, 2, 3], [0, 1, 2, NAN])
    assert credit.incremental(R).reward.isnan().tolist() == [
        [False, True, True],
        [False] * 3,
        [False, False, True],
    ]
    assert credit.terminal(R).reward.isnan().tolist() == [[False] * 3, [False] * 3, [True] * 3]


def test_registry():
    assert [credit.needs_branches(name) for name in credit.METHODS] == [False, True, True, True]
    R = random_ladder(4, 3)
    free = credit.assign("turning_point", R, steps=3, constraint=False, balance=False)
    assert torch.equal(free.reward, credit.turning_point(R, constraint=False, balance=False).reward)
    assert torch.equal(credit.assign("incremental", R, steps=3).reward, R.diff(dim=1))
    assert credit.assign("terminal", R[:, :1], steps=3).reward.shape == (4, 3)
    for call in (
        lambda: credit.assign("turnip", R, steps=3),
        lambda: credit.needs_branches("turnip"),
    ):
        with pytest.raises(
            ValueError, match=r"'turnip'.*terminal, incremental, turning_point, value"
        ):
            call()
    with pytest.raises(ValueError, match=r"'incremental' takes no options, not .'balance'"):
        credit.assign("incremental", R, steps=3, balance=True)
    with pytest.raises(ValueError, match=r"'constraint'.*not .'balances'"):
        credit.assign("turning_point", R, steps=3, balances=True)
    with pytest.raises(ValueError, match=r"\(B, 6\), got \(4, 4\)"):
        credit.assign("turning_point", R, steps=5)
    for method in (credit.incremental, credit.turning_point):
        with pytest.raises(ValueError, match=r"got \(4, 1\)"):
            method(R[:, :1])
