"""Every alarm is raised by what deserves it, none by noise, near misses or healthy runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import awm, base, nft, shared_state, tp_grpo
from tp_grpo.observe import alarms, readings
from tp_grpo.store import files

HEALTHY = {
    "clip_high": 0.1,
    "clip_low": 0.1,
    "diversity": 0.2,
    "failed": 0.0,
    "high_frequency": 0.05,
    "kl": 0.02,
    "ratio_dev": 0.0,
    "zero_std": 0.1,
}
REAL = Path(__file__).parents[1] / "golden" / "healthy_metrics.jsonl"


def settings(**fields: object) -> Any:
    config = tp_grpo.get_config("pickscore_sd3")
    with config.unlocked():
        config.rewards.scorers["aesthetic"] = 0.0
        config.rewards.scorers["clipscore"] = {"weight": 0.0}
    config.update_from_flattened_dict(fields)
    return config


def train(epochs: int, **series: Callable[[int], float | None]) -> list[dict[str, Any]]:
    """A healthy run of so many epochs, but for these series."""
    own = {name: [f(epoch) for epoch in range(epochs)] for name, f in series.items()}
    return [
        {
            "kind": "train",
            "epoch": i + 1,
            **HEALTHY,
            **{name: values[i] for name, values in own.items()},
        }
        for i in range(epochs)
    ]


def evaluations(
    total: list[float], aesthetic: list[float], se: float = 0.1
) -> list[dict[str, Any]]:
    errors = {"total_se": se, "aesthetic_se": se}
    pairs = zip(total, aesthetic, strict=True)
    return [
        {"kind": "eval", "epoch": 20 * i, "total": t, "aesthetic": a, **errors}
        for i, (t, a) in enumerate(pairs)
    ]


def names(history: list[dict[str, Any]], config: Any = None) -> list[str]:
    return [alarm.name for alarm in alarms.check(history, config or settings())]


def test_a_healthy_run_raises_none() -> None:
    assert names(train(30) + evaluations([20, 21, 22], [5, 5, 5])) == []


@pytest.mark.parametrize(
    "name, bad",
    [
        ("KL", {"kl": lambda i: 0.01 * i}),
        ("clip fraction", {"clip_high": lambda i: 0.24, "clip_low": lambda i: 0.24}),
        ("clip fraction", {"clip_high": lambda i: 0.001, "clip_low": lambda i: 0.001}),
        ("zero std", {"zero_std": lambda i: 0.03 * i}),
        ("diversity", {"diversity": lambda i: 0.2 * 0.95**i}),
        ("high frequencies", {"high_frequency": lambda i: 0.05 * 1.05**i}),
        ("ratio_dev", {"ratio_dev": lambda i: 5e-6}),
        ("failed rewards", {"failed": lambda i: 0.04}),
    ],
)
def test_a_series_that_goes_wrong_raises_its_alarm_alone(name: str, bad: Mapping[str, Any]) -> None:
    assert names(train(30, **bad)) == [name]


@pytest.mark.parametrize("seed", range(3))
def test_noise_spikes_and_missing_values_raise_none(seed: int) -> None:
    noise = np.random.default_rng(seed)
    history = train(
        200,
        clip_high=lambda i: float(noise.uniform(0.02, 0.22)),
        clip_low=lambda i: float(noise.uniform(0.02, 0.22)),
        diversity=lambda i: float(noise.normal(0.2, 0.02)) if i % 20 == 19 else None,
        failed=lambda i: 0.05 if i % 5 == 0 else 0.0,
        high_frequency=lambda i: float(noise.normal(0.05, 0.01)) if i % 20 == 19 else None,
        kl=lambda i: 1.0 if i % 3 == 0 else 0.05,
        ratio_dev=lambda i: 1e-5 if i % 4 == 0 else 1e-8,
        zero_std=lambda i: (
            float(noise.binomial(12, 0.2)) / 12
        ),  # a fifth of the pairs, seen through 12 groups
    )
    scores = 5 + 0.1 * noise.standard_normal(200)
    history += evaluations([20 + 0.02 * i for i in range(200)], scores.tolist())
    assert [names(history[:end]) for end in range(1, len(history) + 1)] == [[]] * len(history)


def test_a_never_trained_scorer_that_falls_while_the_reward_rises_is_reward_hacking() -> None:
    history = evaluations([20, 21, 22, 23], [5, 5.5, 5.2, 4.5])
    (alarm,) = alarms.check(history, settings())
    assert alarm.name == "reward hacking"
    # 5.5 of epoch 20 was the best
    assert alarm.evidence == (
        "aesthetic, never trained on, fell from 5.5 to 4.5 between epochs 20 and 60 while the "
        "reward rose from 21 to 23"
    )
    assert "checkpoint of epoch 20" in alarm.change


@pytest.mark.parametrize(
    "why, total, aesthetic",
    [
        ("both fall", [23, 22, 21], [5.5, 5.0, 4.5]),
        ("3 standard errors, of sqrt(2) x 0.1", [20, 21, 22], [5, 5, 4.6]),
        ("the reward stands still", [20, 20.1, 20.2], [5.5, 5.0, 4.5]),
        ("it came back", [20, 21, 22], [5.5, 4.5, 5.4]),
    ],
)
def test_what_is_no_reward_hacking(why: str, total: list[float], aesthetic: list[float]) -> None:
    assert names(evaluations(total, aesthetic)) == [], why


def test_a_trained_scorer_that_falls_is_no_reward_hacking() -> None:
    assert readings.never_trained_on(settings()) == ["aesthetic", "clipscore"]
    config = settings()
    config.rewards.scorers["aesthetic"] = 0.1
    assert names(evaluations([20, 21, 22], [5.5, 5.0, 4.5]), config) == []


def test_the_published_sde_measures_the_kl_by_a_larger_std() -> None:
    history = train(10, kl=lambda i: 0.02)
    assert names(history, settings(**{"sample.kind": "cps"})) == []
    assert names(history, settings(**{"sample.kind": "sde"})) == ["KL"]
    assert names(train(10, kl=lambda i: 9.0), settings(**{"train.beta": 0.0})) == []


def test_the_clip_fraction_is_of_the_updates_whose_ratios_can_move() -> None:
    history = train(
        10, clip_high=lambda i: 0.24, clip_low=lambda i: 0.24
    )  # of 2 updates one has ratio 1: at most 0.5
    assert "96.0% of" in alarms.check(history, settings())[0].evidence
    assert names(history, settings(**{"train.updates_per_epoch": 4})) == []  # 0.48 x 4 / 3 = 0.64
    never = train(10, clip_high=lambda i: 0.0, clip_low=lambda i: 0.0)
    assert names(never, settings(**{"train.updates_per_epoch": 1})) == []


def matching(**fields: object) -> Any:
    config = shared_state.get_config("shapes_tiny")
    config.update_from_flattened_dict({"train.updates_per_epoch": 2, **fields})
    return config


def test_a_run_that_moves_a_tenth_of_an_advantage_in_an_epoch_is_about_to_collapse() -> None:
    history = train(30, moved=lambda i: 0.002 * i)  # of 2 updates one is on the old policy
    assert names(history[:24], matching()) == []  # median 0.042, x 2 / 1
    (alarm,) = alarms.check(history, matching())
    assert alarm.name == "moved"
    assert "by 0.11 (mean |D|, median of 5 epochs), more than 0.1" in alarm.evidence
    assert "lower train.learning_rate" in alarm.change
    assert names(history, matching(**{"train.updates_per_epoch": 4})) == []  # 0.054 x 4 / 3


@pytest.mark.parametrize(
    "why, fields",
    [
        ("its metric of this name is a squared velocity", {"objective.name": "nft"}),
        ("the old policy is the policy at every update", {"train.updates_per_epoch": 1}),
    ],
)
def test_what_does_not_measure_the_pull_raises_no_alarm(why: str, fields: dict[str, Any]) -> None:
    assert names(train(10, moved=lambda i: 1.0), matching(**fields)) == [], why
    assert names(train(10, moved=lambda i: 1.0), matching()) == ["moved"]


def test_an_old_policy_that_lags_is_away_from_the_first_update_on() -> None:
    config = matching(**{"objective.old_ramp": 0.001, "train.updates_per_epoch": 1})
    assert names(train(10, moved=lambda i: 0.11), config) == ["moved"]
    config.train.updates_per_epoch = 2
    assert names(train(10, moved=lambda i: 0.09), config) == []


def test_limits_of_the_next_states_are_not_those_of_clean_images() -> None:
    never = {"clip_high": lambda i: 0.0, "clip_low": lambda i: 0.0}
    assert names(train(10, **never), awm.get_config("shapes_tiny")) == []
    far = train(10, kl=lambda i: 1.0)  # a squared distance of velocities
    assert names(far, nft.get_config("pickscore_sd3")) == []


def test_few_epochs_are_not_judged_and_off_is_silent() -> None:
    bad = train(10, zero_std=lambda i: 1.0)
    assert names(bad[:4]) == []
    assert names(bad[:5]) == ["zero std"]
    assert names(bad, settings(**{"tracking.alarms": "off"})) == []
    assert names([]) == []


def test_an_alarm_is_silent_again_when_its_cause_is_gone() -> None:
    assert names(train(20, zero_std=lambda i: 1.0 if i < 15 else 0.1)) == []


def test_every_alarm_says_numbers_cause_and_fields_that_exist() -> None:
    known = dict(base.get_config().to_dict())
    bad = {"kl": 1.0, "clip_high": 0.5, "zero_std": 1.0, "ratio_dev": 1e-5, "failed": 0.05}
    history = train(10, **{name: lambda i, value=value: value for name, value in bad.items()})
    history += train(
        10, diversity=lambda i: 0.01, high_frequency=lambda i: 0.5, **{"clip_high": lambda i: 0.5}
    )
    history += train(10, clip_high=lambda i: 0.0, clip_low=lambda i: 0.0) + evaluations(
        [20, 25], [5.5, 4.5]
    )
    raised = [
        alarm for end in (10, 20, 30, 32) for alarm in alarms.check(history[:end], settings())
    ]
    assert {alarm.name for alarm in raised} >= {
        "KL",
        "diversity",
        "high frequencies",
        "reward hacking",
        "ratio_dev",
    }
    for alarm in raised:
        assert re.search(r"\d", alarm.evidence)
        assert not re.search(r"nan|inf\b", alarm.evidence)
        assert alarm.cause
        fields = [field.split(".") for field in re.findall(r"\b[a-z]+\.[a-z_]+\b", alarm.change)]
        own = [
            (section, field)
            for section, field in fields
            if (section, field) != ("metrics", "jsonl")
        ]
        assert own and all(field in known[section] for section, field in own), alarm.change
        assert str(alarm).startswith(f"alarm after epoch {alarm.epoch}, {alarm.name}: ")
    assert str(alarms.Alarmed(raised[:2])).count("alarm after epoch") == 2


def test_the_best_epoch_is_saved_and_not_hacked() -> None:
    history = evaluations([20, 21, 22, 25], [5, 5.4, 5.5, 4.5])  # epochs 0, 20, 40, 60
    totals = alarms.honest(history, settings())
    assert totals == {0: 20, 20: 21, 40: 22}
    assert alarms.best_epoch(totals, [20, 40, 60]) == 40
    assert alarms.best_epoch(totals, [20, 60]) == 20
    assert alarms.best_epoch(totals, [59, 61]) is None
    trained = settings()
    trained.rewards.scorers["aesthetic"] = 1.0
    assert alarms.best_epoch(alarms.honest(history, trained), [20, 40, 60]) == 60


@pytest.mark.parametrize(
    "bad",
    [
        {"diversity": lambda i: 0.2 if i < 30 else 0.01},
        {"high_frequency": lambda i: 0.05 if i < 30 else 0.5},
        {"kl": lambda i: 0.02 if i < 30 else 0.5},
    ],
)
def test_a_policy_that_has_collapsed_is_not_the_best_though_its_total_is_highest(
    bad: Mapping[str, Any],
) -> None:
    collapsed = train(60, **bad) + evaluations(
        [20, 21, 22, 25], [5, 5, 5, 5]
    )  # epochs 0, 20, 40, 60
    assert alarms.honest(collapsed, settings()) == {0: 20, 20: 21}
    recovered = train(60, zero_std=lambda i: 0.9 if 15 <= i < 25 else 0.1) + evaluations(
        [20, 23, 22, 25], [5] * 4
    )
    assert alarms.honest(recovered, settings()) == {0: 20, 40: 22, 60: 25}


def test_a_real_healthy_run_raises_none_at_any_epoch() -> None:
    history, config = files.read_lines(REAL), tp_grpo.get_config("shapes_tiny")
    assert (
        sum(record["kind"] == "train" for record in history) == 70
        and history[-1]["total"] > history[0]["total"]
    )
    assert all(HEALTHY.keys() <= record.keys() for record in history if record["kind"] == "train")
    assert [alarms.check(history[:end], config) for end in range(1, len(history) + 1)] == [
        []
    ] * len(history)
    # And it is no run that could not raise any: two of its own numbers, spoilt, do.
    spoilt = [record | {"zero_std": 0.9, "ratio_dev": 0.1} for record in history]
    assert names(spoilt, config) == ["zero std", "ratio_dev"]


def test_an_alarm_has_risen_once_until_it_was_silent() -> None:
    history = train(30, zero_std=lambda i: 1.0 if i < 10 or i >= 20 else 0.1)
    told = [end for end in range(1, 31) if alarms.risen(history[:end], settings())]
    assert told == [5, 23], "three of the last five epochs are bad"
    assert alarms.risen([], settings()) == []
