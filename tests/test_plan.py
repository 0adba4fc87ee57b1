"""The plan: integers derived from the config, or a refusal with the numbers that work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from config import base
from tp_grpo.plan import Plan, make_plan
from tp_grpo.settings import Settings

Smoke = Callable[..., ConfigDict]


def plan(world_size: int = 1, *, branches: bool = True, **fields: object) -> Plan:
    config = base.get_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    config.run_name = "plan"
    return make_plan(Settings.read(config), world_size, branches=branches)


def test_the_published_settings() -> None:
    p = plan(32, sample__batch_size=9)
    assert (p.images, p.nfe, p.ladder) == (1152, 55, 10)
    assert p.batches_per_update == 2 and p.micro_batches == 18
    assert p.train_rows == 9 and plan(32, train__batch_size=45).train_rows == 45
    assert plan(32, train__batch_size=45).micro_batches == 4, "18 entries, five at a time"
    assert plan(32, branches=False).nfe == 10 and plan(32, branches=False).ladder == 1
    assert plan(sample__steps=6, sample__window_size=5).nfe == 21


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 32])
def test_every_world_size_holds_the_same_samples_in_every_update(world_size: int) -> None:
    p = plan(world_size, sample__batch_size=3)
    for update in range(p.updates):
        part = slice(update * p.batches_per_update, (update + 1) * p.batches_per_update)
        held = [
            slot for rank in range(world_size) for batch in p.batches(rank)[part] for slot in batch
        ]
        first = update * p.groups // p.updates
        groups = range(first, first + p.groups // p.updates)
        assert sorted(held) == [
            (group, member) for group in groups for member in range(p.group_size)
        ]


@pytest.mark.parametrize(
    "world_size, fields, message",
    [
        (
            32,
            {"sample__group_size": 25},
            r"48 x 25 = 1200 images in 2 updates do not split over 32 ranks; .* 24 and 28",
        ),
        (
            1,
            {"train__updates_per_epoch": 5},
            r"48 does not split into train.updates_per_epoch = 5 .* 45 and 50",
        ),
        (
            1,
            {"sample__batch_size": 7},
            r"576 images .* batches of it; the nearest that work are 6 and 8",
        ),
        (
            1,
            {"train__batch_size": 20},
            r"whole rollout batches of sample.batch_size = 9; .* are 18 and 27, or 0 for one",
        ),
        (1, {"train__batch_size": 4}, r"train.batch_size = 4: .* is 9, or 0"),
        (
            1,
            {"sample__window_size": 10},
            r"the last step \(9\) ends at sigma 0.*largest window_size from there is 9",
        ),
        (1, {"sample__window_start": 4}, "largest window_size from there is 5"),
        (1, {"sample__window_start": -1}, "sample.window_start = -1"),
        (1, {"sample__group_size": 1}, "at least 2 images"),
        (1, {"sample__steps": 0}, "sample.steps = 0 must be at least 1"),
        (1, {"sample__noise_level": 0.0}, "needs noise above 0"),
        (1, {"sample__noise_level": 1.2}, "at most 1"),
        (1, {"sample__kind": "ode"}, "'ode' is not one of sde, cps"),
        (
            1,
            {"model__text_encoders": "cpu"},
            "model.text_encoders = 'cpu' is not one of offload, resident, drop",
        ),
        (1, {"model__vae_dtype": "fp16"}, "model.vae_dtype = 'fp16' is not one of fp32, bf16"),
        (
            1,
            {"train__optimizer": "adam"},
            "train.optimizer = 'adam' is not one of adamw, adamw_8bit",
        ),
        (
            1,
            {"train__step_weight": "sigma"},
            "train.step_weight = 'sigma' is not one of uniform, velocity",
        ),
        (1, {"epochs": 0}, "epochs = 0"),
        (1, {"seed": -1}, "seed = -1"),
        (1, {"train__beta": -0.1}, "train.beta = -0.1 must be at least 0"),
        (1, {"advantage__clip": 0.0}, "advantage.clip = 0.0"),
        (1, {"train__updates_per_epoch": 5000}, "no nearby value works"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(
    world_size: int, fields: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(world_size, **fields)
