"""Settings that do not fit the objective, the groups or the window, each refused in words."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from config import awm, dgpo, elbo_pg, flow_grpo, nft, shared_state, tp_grpo
from tests.test_settings import config, refusal
from tp_grpo.method.credit import METHODS
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.settings import Settings, points_of

TERMINAL = {"credit__name": "terminal"}
SHARED = {"sample__groups": "shared_state", **TERMINAL}
NOISED = [name for name in OBJECTIVES if OBJECTIVES[name].noised]
VISITED = [name for name in OBJECTIVES if not OBJECTIVES[name].noised]


@pytest.mark.parametrize("name", NOISED)
def test_noised_images_come_from_no_shared_state(name: str) -> None:
    (mistake,) = refusal(**SHARED, objective__name=name)
    assert mistake == (
        f"objective.name = '{name}' looks at clean images that are noised afresh, but "
        "sample.groups = 'shared_state' samples next states of one state; set "
        "sample.groups = 'trajectories', or an objective of the states: grpo, guard, dppo or "
        "matching"
    )


@pytest.mark.parametrize("name", VISITED)
def test_the_other_objectives_take_both_kinds_of_groups(name: str) -> None:
    for groups in ("trajectories", "shared_state"):
        fields = {"sample__groups": groups, "objective__name": name, **TERMINAL}
        assert Settings.read(config(**fields)).points == groups
        assert points_of(name, groups) == groups


@pytest.mark.parametrize("credit", ["incremental", "turning_point", "value"])
@pytest.mark.parametrize(
    "fields, who",
    [
        ({"objective__name": "nft"}, "objective.name = 'nft'"),
        ({"sample__groups": "shared_state"}, "shared_state"),
    ],
)
def test_a_credit_of_steps_needs_trajectories(
    credit: str, fields: dict[str, Any], who: str
) -> None:
    (mistake,) = refusal(credit__name=credit, **fields)
    assert mistake == (
        f"credit.name = '{credit}' tells the steps of a trajectory apart, but with {who} an image "
        "has one score and no steps to compare; set credit.name = 'terminal'"
    )


@pytest.mark.parametrize("name", NOISED)
def test_noised_images_of_one_start_would_be_one_image(name: str) -> None:
    (mistake,) = refusal(objective__name=name, sample__same_latent=True, **TERMINAL)
    assert mistake == (
        f"sample.same_latent = True: with objective.name = '{name}' the noise of the start is all "
        "that tells the images of a prompt apart, so that they would be one image; leave it False"
    )


@pytest.mark.parametrize("name", NOISED)
def test_without_stochastic_steps_any_window_will_do(name: str) -> None:
    """The default of 9 steps does not fit a rollout of 6."""
    fields = {"sample__steps": 6, "sample__window_size": 9, **TERMINAL}
    assert Settings.read(config(objective__name=name, **fields))
    assert len(refusal(**fields)) == 1


@pytest.mark.parametrize(
    "fields, mistake",
    [
        (
            {"advantage__scale": 0.1},
            "advantage.scale = 0.1: gdpo divides each score by its own group's std and whitens the "
            "sum; set advantage.scale = 0, or advantage.combine = 'sum'",
        ),
        (
            {"advantage__over": "joint"},
            "advantage.over = 'joint': gdpo compares each step on its own; set "
            "advantage.over = 'step', or advantage.combine = 'sum'",
        ),
    ],
)
def test_gdpo_has_a_normalisation_of_its_own(fields: dict[str, Any], mistake: str) -> None:
    assert refusal(advantage__combine="gdpo", **fields) == [mistake]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sample__fork": "first"}, "sample.fork = 'first': only sample.groups = 'shared_state' "),
        (
            {"sample__window": "random", "objective__name": "nft", **TERMINAL},
            "sample.window = 'random': nft takes no stochastic steps",
        ),
        ({"sample__window_stop": 5}, "sample.window_stop = 5: the window is fixed"),
        ({"objective__old_flat": 9}, "objective.old_flat = 9: old_ramp or old_max is 0, so that"),
        ({"advantage__over": "joint", **SHARED}, "advantage.over = 'joint': there is one reward "),
        (
            {"advantage__scale": 0.1, "advantage__global_std": True},
            "advantage.global_std = True: advantage.scale = 0.1 divides by no std",
        ),
        (
            {"advantage__combine": "gdpo", "advantage__global_std": True},
            "advantage.global_std = True: gdpo divides each score by its own group's std",
        ),
        (
            {"objective__name": "matching", "train__step_weight": "velocity"},
            "train.step_weight = 'velocity': matching weights no steps so",
        ),
        (
            {"objective__name": "guard", "train__step_weight": "noise"},
            "train.step_weight = 'noise': guard weights no steps so",
        ),
    ],
)
def test_what_has_no_effect_is_said(fields: dict[str, Any], words: str) -> None:
    plain = {"advantage__global_std": False, "train__step_weight": "uniform"}
    cautions = list(Settings.read(config(**plain | fields)).cautions(classifier_free=False))
    assert [caution for caution in cautions if caution.startswith(words)], cautions
    assert all(caution.endswith("; it has no effect") for caution in cautions)
    assert len(cautions) == 1


@pytest.mark.parametrize("name", VISITED)
def test_an_old_policy_that_lags_cannot_sample_for_a_ratio(name: str) -> None:
    (mistake,) = refusal(objective__name=name, objective__old_ramp=0.01, **TERMINAL)
    assert mistake == (
        f"objective.old_ramp = 0.01: {name} compares the policy with what it was when it sampled, "
        "so that it must sample itself; set objective.old_ramp = 0, or an objective that noises "
        "clean images: nft, elbo_pg, awm or dgpo"
    )
    never = {"objective__old_ramp": 0.01, "objective__old_max": 0.0}
    assert Settings.read(config(objective__name=name, **never, **TERMINAL))


@pytest.mark.parametrize("name", NOISED)
def test_an_old_policy_that_lags_may_sample_clean_images(name: str) -> None:
    assert Settings.read(config(objective__name=name, objective__old_ramp=0.01, **TERMINAL))


def test_a_shared_state_group_of_one_is_refused() -> None:
    (mistake,) = refusal(sample__group_size=1, **SHARED)
    assert mistake == ("sample.group_size = 1: an advantage compares at least 2 images of a prompt")


def test_shared_states_share_their_start_already() -> None:
    (mistake,) = refusal(sample__same_latent=True, **SHARED)
    assert mistake == (
        "sample.same_latent = True: shared_state groups share their start already; leave it False"
    )


@pytest.mark.parametrize("window", ["random", "sliding"])
def test_the_window_of_shared_states_does_not_move(window: str) -> None:
    (mistake,) = refusal(sample__window=window, **SHARED)
    assert mistake == (
        f"sample.window = '{window}' moves the window of trajectories, but shared_state groups "
        "fork anywhere in theirs; set sample.window = 'fixed', and sample.window_size to all "
        "steps to fork at"
    )


@pytest.mark.parametrize("fork", ["spread", "uniform", "first"])
def test_every_way_to_fork_is_taken(fork: str) -> None:
    assert Settings.read(config(sample__fork=fork, **SHARED)).sample.fork == fork


@pytest.mark.parametrize("window", ["random", "sliding"])
def test_a_moving_window_fits_before_its_stop(window: str) -> None:
    fields = {"sample__steps": 6, "sample__window_start": 1, "sample__window": window, **TERMINAL}
    for stop in (0, 3, 4, 5):
        assert Settings.read(config(sample__window_stop=stop, **fields))
    for stop in (1, 2, 6):
        assert refusal(sample__window_stop=stop, **fields) == [
            f"sample.window_stop = {stop}: a window of 2 steps from step 1 must fit before it, and "
            "it is at most 5, the last of 6 steps; 3 to 5 work, or 0 for 5"
        ]


def test_a_fixed_window_has_no_stop() -> None:
    assert Settings.read(config(sample__window_stop=1, **TERMINAL)).sample.window_stop == 1


def test_a_window_that_reaches_the_last_step_is_refused_whether_it_moves_or_not() -> None:
    mistakes = refusal(sample__window_size=4, sample__window="sliding")
    assert mistakes[0].startswith("sample.window_start = 0 and sample.window_size = 4: the window")
    assert "ends at sigma 0, where no noise is left to act on" in mistakes[0]


@pytest.mark.parametrize("module", [nft, elbo_pg, awm, dgpo])
def test_guidance_where_the_source_has_none_is_worth_a_word(module: ModuleType) -> None:
    c = module.get_config("shapes_smoke")
    name = c.objective.name
    assert not list(Settings.read(c).cautions(classifier_free=True))
    c.sample.guidance_scale = 4.5
    (caution,) = Settings.read(c).cautions(classifier_free=True)
    assert caution == (
        f"sample.guidance_scale = 4.5: {name} was published without guidance (1). With it every "
        "evaluation is paid twice, and the loss compares a guided velocity with images that no "
        "single model makes; train.guidance_scale = 1 leaves it out of the updates"
    )
    c.train.guidance_scale = 1.0
    assert not list(Settings.read(c).cautions(classifier_free=True))
    c.train.guidance_scale = 0.0
    assert not list(Settings.read(c).cautions(classifier_free=False)), "FLUX's is an input"


@pytest.mark.parametrize("module", [flow_grpo, tp_grpo, shared_state])
def test_guidance_on_visited_states_is_as_published(module: ModuleType) -> None:
    c = module.get_config("shapes_smoke")
    c.sample.guidance_scale = 4.5
    assert not list(Settings.read(c).cautions(classifier_free=True))


def test_a_method_that_is_registered_after_the_settings_were_read_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a notebook, which trains a method of ours before its own."""
    mine = flow_grpo.get_config("shapes_smoke")
    Settings.read(mine)
    mine.credit.name = mine.objective.name = "mine"
    with pytest.raises(ValueError, match="'mine' is not one of"):
        Settings.read(mine)
    monkeypatch.setitem(OBJECTIVES, "mine", OBJECTIVES["grpo"])
    monkeypatch.setitem(METHODS, "mine", METHODS["terminal"])
    assert Settings.read(mine).credit.name == "mine"
