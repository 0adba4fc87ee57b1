"""The ladder as a value estimate: unbiased on a closed-form bandit, least variance, GAE's ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tp_grpo.method import credit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bandit(groups: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Actions a_j ~ N(theta_j, 1), theta = 0, R_2 = R_1 (1 + a_1) + a_1: d E[R_2] / d theta = 2.

    R_0 = e ~ Exp(1), R_1 = R_0 + a_0; E[R_1] = 1. E[a_0 R_2] = 1 and E[a_1 R_2] = E[R_1] + 1 = 2.
    """
    noise = randn(3, groups * size, seed=seed)
    start, a = -torch.special.ndtr(noise[0]).clamp(max=1 - 1e-9).neg().log1p(), noise[1:]
    first = start + a[0]
    ladder = torch.stack([start, first, first * (1 + a[1]) + a[1]], dim=1)
    return ladder, a.T, torch.arange(groups).repeat_interleave(size)


def gradient(reward: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The score-function estimate of d E[R] / d theta_j, and its standard error; (2,) each."""
    terms = actions * reward
    return terms.mean(0), terms.std(0) / len(terms) ** 0.5


def test_the_gradient_is_unbiased_and_quieter_than_the_terminal_rewards() -> None:
    R, actions, group = bandit(4000, 25)
    truth = torch.tensor([1.0, 2.0]).double()
    for got in (credit.value(R, group).reward, credit.terminal(R).reward):
        mean, error = gradient(got, actions)
        assert ((mean - truth).abs() < 4 * error).all(), (mean, error)
    quiet, loud = (
        gradient(r, actions)[1] for r in (credit.value(R, group).reward, credit.terminal(R).reward)
    )
    assert (quiet < loud).all()


def test_a_baseline_fitted_on_its_own_samples_would_be_biased() -> None:
    """Few and small groups, fitted many times: held out there is no bias, in fit there is."""
    truth, found = torch.tensor([1.0, 2.0]).double(), {True: [], False: []}  # type: dict[bool, list[Tensor]]
    for seed in range(2000):
        R, actions, group = bandit(3, 3, seed)
        for held_out, means in found.items():
            b = credit.slopes(R, group, held_out=held_out)
            means.append((actions * (R[:, -1:] - b.clamp(-3, 3) * R[:, :-1])).mean(0))
    held, fitted = (torch.stack(found[key]) for key in (True, False))
    error = held.std(0) / len(held) ** 0.5
    assert ((held.mean(0) - truth).abs() < 4 * error).all(), (held.mean(0), error)
    assert (fitted.mean(0) - truth)[1] < -4 * fitted.std(0)[1] / len(fitted) ** 0.5


def within(reward: Tensor, group: Tensor) -> Tensor:
    """Variance of each column within groups."""
    return torch.stack([reward[group == g].var(0, correction=0) for g in group.unique()]).mean(0)


@pytest.mark.parametrize("seed", range(5))
def test_in_fit_the_variance_is_never_above_the_terminals(seed: int) -> None:
    group = torch.arange(6).repeat_interleave(8)
    R = randn(48, 6, seed=seed).cumsum(1) + 3 * randn(6, 1, seed=seed + 100)[group]
    b = credit.slopes(R, group, held_out=False)
    fitted, terminal = (
        within(r, group) for r in (R[:, -1:] - b * R[:, :-1], R[:, -1:].expand(-1, 5))
    )
    assert (fitted <= terminal + 1e-12).all() and (fitted < 0.9 * terminal).any()
    for other in (-0.1, 0.1):
        assert (within(R[:, -1:] - (b + other) * R[:, :-1], group) >= fitted).all(), (
            "no slope does better"
        )


def test_slopes_by_hand() -> None:
    """Within groups (0, 2), (0, 4) -> (0, 2), (0, 12): products 2 and 24, squares 2 and 8."""
    R = torch.tensor([[0.0, 5.0], [2.0, 7.0], [0.0, 1.0], [4.0, 13.0]]).double()
    group = torch.tensor([7, 7, 3, 3])
    assert credit.slopes(R, group, held_out=False).flatten().tolist() == pytest.approx([2.6] * 4)
    assert credit.slopes(R, group, held_out=True).flatten().tolist() == pytest.approx([3, 3, 1, 1])
    assert credit.value(R, group).reward.flatten().tolist() == pytest.approx([5, 1, 1, 9])
    assert not credit.slopes(R[:2], group[:2], held_out=True).any(), "no other group: no baseline"


def test_lambda_lies_between_the_step_and_all_that_follows() -> None:
    R, group = randn(40, 5).cumsum(1), torch.arange(8).repeat_interleave(5)
    V = torch.cat([credit.slopes(R, group, held_out=True) * R[:, :-1], R[:, -1:]], 1)
    added = V.diff(dim=1)
    torch.testing.assert_close(credit.value(R, group, lam=0.0).reward, added)
    torch.testing.assert_close(credit.value(R, group, lam=1.0).reward, V[:, -1:] - V[:, :-1])
    half = credit.value(R, group, lam=0.5).reward
    torch.testing.assert_close(half[:, 2], added[:, 2] + 0.5 * added[:, 3])
    torch.testing.assert_close(half[:, 0], added @ torch.tensor([1, 0.5, 0.25, 0.125]).double())


def test_what_is_missing_is_left_out_of_the_fit() -> None:
    R, group = randn(20, 4).cumsum(1), torch.arange(5).repeat_interleave(4)
    kept = torch.arange(20) != 6
    holes = torch.where(kept[:, None], R, torch.nan)
    torch.testing.assert_close(
        credit.slopes(holes, group, held_out=True)[kept],
        credit.slopes(R[kept], group[kept], held_out=True),
    )
    assert credit.value(holes, group).reward.isnan().all(1).tolist() == (~kept).tolist()


def test_the_groups_are_asked_for() -> None:
    R = randn(4, 3)
    with pytest.raises(ValueError, match="credit 'value' compares groups: it needs group_id"):
        credit.assign("value", R, steps=2)
    with pytest.raises(ValueError, match=r"group_id \(3,\) must be \(B,\) for a ladder \(4, 3\)"):
        credit.value(R, torch.arange(3))
    got = credit.assign("value", R, steps=2, group_id=torch.tensor([0, 0, 1, 1]), lam=0.5)
    assert torch.equal(got.reward, credit.value(R, torch.tensor([0, 0, 1, 1]), lam=0.5).reward)


@pytest.mark.parametrize("name", ["incremental", "turning_point", "value"])
def test_a_ladder_with_gaps_gives_neighbouring_steps_one_credit(name: str) -> None:
    """States 2, 3 and 6 of 6: steps 0 and 1 come before the ladder, 3 to 5 share one interval."""
    R, group = randn(12, 3), torch.arange(4).repeat_interleave(3)
    got = credit.assign(name, R, steps=6, states=(2, 3, 6), group_id=group)
    compact = credit.assign(name, R, steps=2, group_id=group)
    assert torch.equal(got.reward[:, :2], R[:, -1:].expand(-1, 2)) and not got.turning[:, :2].any()
    for field in ("reward", "increment", "turning"):
        assert torch.equal(getattr(got, field)[:, 2:], getattr(compact, field)[:, [0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"6 steps needs a ladder \(B, 3\), got \(12, 2\)"):
        credit.assign(name, R[:, 1:], steps=6, states=(2, 3, 6), group_id=group)
