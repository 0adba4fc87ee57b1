"""The plan of shared states, of noised images, and of windows that move."""

from __future__ import annotations

from collections import Counter

import pytest

from config import base
from tp_grpo.plan import Plan, make_plan
from tp_grpo.settings import Settings

SHARED = {"sample__groups": "shared_state", "sample__batch_size": 2, "credit__name": "terminal"}
MOVING = {"sample__window_size": 3, "credit__name": "terminal"}


def plan(world_size: int = 1, **fields: object) -> Plan:
    config = base.get_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    config.run_name = "plan"
    return make_plan(Settings.read(config), world_size)


def noised(name: str = "nft", **fields: object) -> Plan:
    return plan(objective__name=name, credit__name="terminal", **fields)


def test_a_shared_state_group_costs_its_trunk_its_state_and_its_completions() -> None:
    """T = 10, G = 24: forked at step 3, 3 + 1 and 24 times the steps 4 to 9."""
    p = plan(**SHARED)
    assert p.group_nfe(3) == 3 + 1 + 24 * 6
    assert p.group_nfe(0) == 0 + 1 + 24 * 9
    assert p.group_nfe(8) == 8 + 1 + 24 * 1
    assert plan(**SHARED, sample__completion="tweedie").group_nfe(3) == 3 + 1 + 24 * 1


def test_an_epochs_evaluations_are_those_of_its_forks() -> None:
    p = plan(**SHARED, sample__groups_per_epoch=4)
    assert p.evaluations([3, 0, 8, 3]) == 148 + 217 + 33 + 148
    by_step = [s + 1 + 24 * (9 - s) for s in range(9)]
    assert p.epoch_nfe == round(4 * sum(by_step) / 9), "before they are drawn, the mean"
    assert plan(credit__name="terminal").evaluations() == 1152 * 10


def test_a_row_of_shared_states_is_a_group_and_an_update_sees_it_once() -> None:
    p = plan(**SHARED)
    assert p.members == 24
    assert (p.columns, p.credited) == (1, 1)
    assert (p.batches_per_update, p.micro_batches) == (12, 12)
    assert p.batch_images == 48
    assert p.epoch_images == 1152
    assert p.rows(0)[1] == range(48, 96)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_two_ranks_share_a_group(world_size: int) -> None:
    p = plan(world_size, **SHARED)
    owners = Counter()
    for rank in range(world_size):
        groups = [group for batch in p.batches(rank) for group, _ in batch]
        owners.update(set(groups))
        assert set(Counter(groups).values()) == {24}
    assert owners == Counter(range(48))


@pytest.mark.parametrize(
    "world_size, fields, message",
    [
        (
            32,
            {},
            r"sample.groups_per_epoch = 48: shared_state groups stay whole, and 48 in 2 updates do "
            r"not split over 32 ranks; the nearest that works is 64",
        ),
        (
            4,
            {"sample__batch_size": 4},
            r"sample.batch_size = 4: a rank's 6 groups of an update \(48 groups, 2 updates, 4 "
            r"ranks\) do not split into batches of it; the nearest that work are 3 and 6",
        ),
        (1, {"sample__group_size": 1}, "an advantage compares at least 2 images of a prompt"),
    ],
)
def test_shared_states_that_do_not_divide_are_refused(
    world_size: int, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(world_size, **SHARED | fields)


def test_the_plan_of_shared_states_in_words() -> None:
    rows = [sentence for _, sentence in plan(**SHARED).summary]
    assert any(
        row.startswith(
            "33 to 217 model evaluations a group, forked at step 0 to 8 of 10 steps; 6000 an "
            "epoch if each is as likely"
        )
        for row in rows
    )
    first = [sentence for _, sentence in plan(**SHARED, sample__fork="first").summary]
    assert "217 model evaluations a group, forked at step 0 of 10 steps; 10416 an epoch" in first
    assert any(
        "12 micro-batches of 2 accumulated (12 rollout batches, a row a group)" in row
        for row in rows
    )


def test_forked_at_the_first_step_alone_is_counted_so() -> None:
    """48 groups of 24, T = 10: 48 (1 + 24 x 9), where the mean over 9 steps is 48 (5 + 24 x 5)."""
    assert plan(**SHARED, sample__fork="first").epoch_nfe == 48 * 217
    assert plan(**SHARED).epoch_nfe == 48 * 125
    late = plan(**SHARED, sample__fork="first", sample__window_start=2, sample__window_size=4)
    assert late.epoch_nfe == 48 * late.group_nfe(2)


def test_evaluations_by_a_completion_that_is_cheaper_somewhere() -> None:
    """multistep completes steps 0 to 6 with 3 evaluations, the later ones with those left."""
    p = plan(**SHARED, sample__completion="multistep")
    counts = [p.group_nfe(step) for step in p.window]
    (words,) = [row for name, row in p.summary if name == "sampling"]
    assert words.startswith(f"{min(counts)} to {max(counts)} model evaluations a group")
    assert max(counts) not in (counts[0], counts[-1])


def test_a_moving_window_with_branches_is_counted_on_the_average() -> None:
    """The later the window, the shorter its completions."""
    p = plan(sample__window="sliding", sample__window_size=3, credit__name="turning_point")
    places = [p.in_epoch(epoch, seed=0) for epoch in range(0, 12 * len(p.starts), 12)]
    assert [place.window.start for place in places] == list(p.starts) == list(range(7))
    each = [place.evaluations() for place in places]
    assert each == sorted(each, reverse=True) and len(set(each)) == 7
    assert p.epoch_nfe == round(sum(each) / 7)
    assert {place.epoch_nfe for place in places} == {p.epoch_nfe}, "an epoch's plan says the same"
    (words,) = [row for name, row in p.summary if name == "sampling"]
    assert words == (
        f"{places[-1].nfe} to {places[0].nfe} model evaluations an image, {p.epoch_nfe} an epoch "
        "on the average; 10 steps, 3 of them in a moving window"
    )


def refused(world_size: int, **fields: object) -> str:
    with pytest.raises(ValueError) as refusal:
        plan(world_size, objective__name="dgpo", credit__name="terminal", **fields)
    return str(refusal.value)


def test_groups_that_are_compared_stay_whole() -> None:
    """48 groups of 24 images in 2 updates."""
    assert noised("dgpo", sample__batch_size=48).batch_size == 48
    assert refused(1, sample__batch_size=9) == (
        "sample.batch_size = 9: a rank's 576 images, 24 whole groups, of an update (48 groups, "
        "2 updates, 1 ranks) do not split into batches of it; the nearest that works is 24"
    )
    assert refused(5, sample__batch_size=24) == (
        "sample.groups_per_epoch = 48: dgpo compares the images of a prompt, which stay together, "
        "and 48 in 2 updates do not split over 5 ranks; the nearest that work are 40 and 50"
    )


def test_noised_images_need_no_window() -> None:
    p = noised(objective__timesteps=4)
    assert (p.points, p.window) == ("noised", range(0))
    assert (p.columns, p.credited) == (4, 1)
    assert (p.nfe, p.ladder) == (10, 1)
    assert p.micro_batches == p.batches_per_update * 4
    assert any("64 rollout batches x 4 times" in sentence for _, sentence in p.summary)


@pytest.mark.parametrize("name", ["nft", "elbo_pg", "awm"])
def test_every_noised_objective_has_that_plan(name: str) -> None:
    assert noised(name) == noised("nft")


def test_a_second_order_solver_makes_noised_images_in_fewer_evaluations() -> None:
    p = noised(sample__completion="multistep", sample__completion_steps=6)
    assert p.nfe == 6
    assert p.epoch_nfe == 1152 * 6


def starts(p: Plan, epochs: int, seed: int = 42) -> list[int]:
    return [p.in_epoch(epoch, seed).window.start for epoch in range(epochs)]


def test_a_sliding_window_moves_by_a_step_and_begins_again() -> None:
    p = plan(**MOVING, sample__window="sliding", sample__window_every=2, sample__window_stop=6)
    assert starts(p, 10) == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert p.in_epoch(4, 42).window == range(2, 5)


def test_a_sliding_window_begins_at_window_start_and_ends_before_the_last_step() -> None:
    p = plan(**MOVING, sample__window="sliding", sample__window_every=1, sample__window_start=4)
    assert starts(p, 4) == [4, 5, 6, 4]


def test_a_random_window_is_drawn_for_each_epoch_and_reaches_every_place() -> None:
    p = plan(**MOVING, sample__window="random", sample__window_stop=5)
    drawn = starts(p, 200)
    assert set(drawn) == {0, 1, 2}
    assert min(Counter(drawn).values()) > 40
    assert drawn != starts(p, 200, seed=43)
    assert {len(p.in_epoch(epoch, 42).window) for epoch in range(20)} == {3}


@pytest.mark.parametrize("window", ["random", "sliding"])
def test_the_window_of_an_epoch_is_the_same_on_all_ranks_and_after_a_resume(window: str) -> None:
    one, many = (
        plan(world_size, **MOVING, sample__window=window, sample__window_every=1)
        for world_size in (1, 4)
    )
    assert starts(one, 30) == starts(many, 30)
    moved = one
    for epoch in range(30):  # the trainer asks the plan of the epoch before
        moved = moved.in_epoch(epoch, 42)
        assert moved.window == one.in_epoch(epoch, 42).window


def test_a_window_that_moves_changes_the_completions_and_nothing_else() -> None:
    p = plan(sample__window="sliding", sample__window_size=3, sample__window_every=1)
    sigmas = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1, 0.05, 0.01, 0.0]
    later = p.at(sigmas).in_epoch(4, 42)
    assert later.window == range(4, 7)
    assert later.completion.small == 9
    assert (later.images, later.columns, later.starts) == (p.images, p.columns, p.starts)
    assert later.nfe == 10 + 3 * (10 - 4 - 1) - 3
    assert p.nfe == 10 + 3 * (10 - 0 - 1) - 3


def test_a_fixed_window_stays() -> None:
    p = plan(**MOVING, sample__window_start=2)
    assert p.in_epoch(17, 42) is p
