"""The old policy: how much of itself it keeps, what it becomes, and what a checkpoint holds."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from config import awm, flow_grpo, nft, shared_state
from tp_grpo.models.policy import Policy
from tp_grpo.settings import Settings
from tp_grpo.settings.learning import ObjectiveSettings
from tp_grpo.train.old_policy import OldPolicy, copies


def settings(**fields: Any) -> ObjectiveSettings:
    objective = Settings.read(nft.get_config("shapes_smoke")).objective
    return replace(objective, **fields)


class OneWeight(nn.Module):
    """A transformer of one number, all of it trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.device, self.dtype = torch.device("cpu"), torch.float32


def policy() -> Policy:
    return Policy(OneWeight(), rank=0, alpha=1, targets=(), kl=False)


def set_to(p: Policy, value: float) -> None:
    with torch.no_grad():
        p.parameters["weight"].fill_(value)


def held(old: OldPolicy) -> float:
    """The weight while the old policy's is held."""
    with old.holding():
        return old.policy.parameters["weight"].item()


LAGS = {"old_ramp": 0.25, "old_max": 0.6}


@pytest.mark.parametrize(
    "fields, etas",
    [
        ({"old_ramp": 0.0}, {1: 0, 100: 0}),
        ({"old_ramp": 0.001, "old_max": 0.5}, {1: 0.001, 20: 0.02, 500: 0.5, 900: 0.5}),
        (
            {"old_ramp": 0.0075, "old_max": 0.999, "old_flat": 75},
            {1: 0, 75: 0, 76: 0.0075, 175: 0.75, 300: 0.999},
        ),
        ({"old_ramp": 0.5, "old_max": 0.0}, {1: 0, 9: 0}),
    ],
)
def test_eta_by_update(fields: dict[str, Any], etas: dict[int, float]) -> None:
    """The second and third are DiffusionNFT's published schedules."""
    old = OldPolicy(policy(), settings(**fields), copies=False)
    assert [old.eta(updates) for updates in etas] == pytest.approx(list(etas.values()))


def test_it_follows_by_what_eta_leaves() -> None:
    p = policy()
    old = OldPolicy(p, settings(**LAGS), copies=False)
    assert old.is_policy
    set_to(p, 5.0)
    old.moved()
    assert held(old) == 1.0
    old.follow(1)  # eta 0.25
    assert held(old) == pytest.approx(0.25 * 1 + 0.75 * 5)
    set_to(p, 8.0)
    old.follow(4)  # eta 0.6, the largest
    assert held(old) == pytest.approx(0.6 * 4 + 0.4 * 8)
    assert not old.is_policy
    assert p.parameters["weight"].item() == 8.0, "the policy itself is not touched"


def test_in_the_flat_epochs_it_becomes_the_policy_bit_for_bit() -> None:
    p = policy()
    old = OldPolicy(p, settings(**LAGS, old_flat=2), copies=False)
    set_to(p, 0.1)
    old.moved()
    assert not old.is_policy
    old.follow(2)
    assert old.is_policy
    set_to(p, 0.7)
    old.moved()
    assert held(old) == torch.tensor(0.1).item()


def test_without_a_ramp_it_is_what_the_epoch_began_with() -> None:
    p = policy()
    old = OldPolicy(p, settings(), copies=True)
    set_to(p, 3.0)
    old.moved()
    assert held(old) == 1.0
    old.follow(1)
    assert old.is_policy
    old.moved()
    assert held(old) == 3.0


@pytest.mark.parametrize(
    "module, fields, kept",
    [
        (flow_grpo, {}, (False, False)),
        (shared_state, {}, (False, False)),
        (nft, {}, (True, False)),  # for the second update of an epoch
        (nft, {"train.updates_per_epoch": 1}, (False, False)),
        (nft, {"train.updates_per_epoch": 1, "train.inner_epochs": 2}, (True, False)),
        (nft, {"train.updates_per_epoch": 1, "objective.old_ramp": 0.1}, (True, False)),
        (
            nft,
            {"train.updates_per_epoch": 1, "objective.old_ramp": 0.1, "objective.old_max": 0.0},
            (False, False),
        ),
        (awm, {"train.updates_per_epoch": 1, "objective.old_ramp": 0.1}, (False, True)),
        (awm, {"objective.old_ramp": 0.1}, (True, True)),
    ],
)
def test_the_copies_that_a_run_keeps(
    module: ModuleType, fields: dict[str, Any], kept: tuple[bool, bool]
) -> None:
    config = module.get_config("shapes_smoke")
    config.update_from_flattened_dict(fields)
    assert copies(Settings.read(config)) == kept


def test_from_the_checkpoint_of_a_policy_that_lags_one_that_does_not_is_the_policy() -> None:
    p = policy()
    old = OldPolicy(p, settings(), copies=True)
    set_to(p, 3.0)
    old.restore({"weight": torch.tensor([1.0])})
    assert old.is_policy and not old.state()
    old.moved()
    assert held(old) == 3.0


def test_where_nothing_compares_with_it_there_is_no_copy() -> None:
    p = policy()
    old = OldPolicy(p, settings(), copies=False)
    set_to(p, 3.0)
    old.moved()
    assert old.weights is None
    assert held(old) == 3.0
    assert old.state() == {}


def test_a_checkpoint_brings_back_a_policy_that_lags() -> None:
    p = policy()
    old = OldPolicy(p, settings(**LAGS), copies=False)
    set_to(p, 5.0)
    old.moved()
    old.follow(1)
    state = {name: value.clone() for name, value in old.state().items()}
    again = policy()
    set_to(again, 5.0)  # the learner restores the policy first
    resumed = OldPolicy(again, settings(**LAGS), copies=False)
    resumed.restore(state)
    assert not resumed.is_policy
    assert held(resumed) == held(old) == 4.0
    set_to(p, 6.0)
    set_to(again, 6.0)
    old.follow(2)
    resumed.follow(2)
    assert held(resumed) == held(old) == 5.0


def test_a_checkpoint_says_nothing_where_the_two_are_the_same() -> None:
    p = policy()
    old = OldPolicy(p, settings(**LAGS, old_flat=9), copies=False)
    set_to(p, 5.0)
    old.moved()
    old.follow(1)
    assert old.state() == {}
    resumed = OldPolicy(p, settings(**LAGS, old_flat=9), copies=False)
    set_to(p, 7.0)
    resumed.restore({})
    resumed.moved()
    assert held(resumed) == 7.0
