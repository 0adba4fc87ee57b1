"""What each setting accepts, that all mistakes come together, and what is stored of a config."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from config import base, recipes, tp_grpo
from tp_grpo.models.base import DTYPES
from tp_grpo.settings import Settings
from tp_grpo.settings.sections import weight
from tp_grpo.settings.setting import Setting, stated

STATED = list(stated(Settings))
NAMES = [name for name, _, _ in STATED]
WRONG = {  # a value of another type
    "int": 1.5,
    "float": "much",
    "str": 7,
    "bool": 1,
    "tuple[str, ...]": (1,),
    "tuple[float, float]": (0.9,),
    "Mapping[str, Any]": 3,
}


def config(**fields: Any) -> ConfigDict:
    """The smoke recipe with these fields, by name with `__` for a dot, whatever their type."""
    c = ConfigDict(tp_grpo.get_config("shapes_smoke").to_dict(), type_safe=False)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (c[section] if section else c)[field] = value
    return c


def refusal(**fields: Any) -> list[str]:
    with pytest.raises(ValueError) as refused:
        Settings.read(config(**fields))
    return str(refused.value).splitlines()


def beyond(setting: Setting) -> list[float]:
    """A value outside of each bound."""
    low = [] if setting.low is None else [setting.low - 1]
    high = [] if setting.high is None else [setting.high + 1]
    return [*low, *high, *([] if setting.above is None else [setting.above])]


@pytest.mark.parametrize("name", ["~/mine", "~", "a/b", "/data/mine", "..", "."])
def test_a_run_s_name_is_that_of_one_folder(name: str) -> None:
    (mistake,) = refusal(run_name=name)
    assert mistake.startswith(f"run_name = {name!r} must be the name of one folder, without /")


@pytest.mark.parametrize("name, setting, kind", STATED, ids=NAMES)
def test_each_setting_refuses_another_type(name: str, setting: Setting, kind: str) -> None:
    value = WRONG[kind]
    (mistake,) = refusal(**{name.replace(".", "__"): value})
    assert mistake == f"{name} = {value!r} must be of type {kind}"


CHOSEN = [(name, setting, kind) for name, setting, kind in STATED if setting.choices]


@pytest.mark.parametrize("name, setting, kind", CHOSEN, ids=[name for name, _, _ in CHOSEN])
def test_each_choice_is_taken_and_no_other(name: str, setting: Setting, kind: str) -> None:
    several = kind.startswith("tuple")
    field = name.replace(".", "__")
    for choice in setting.choices:
        fields: dict[str, object] = {"model__embeddings_cache": "a", "credit__name": "terminal"}
        fields |= {"sample__batch_size": 24, field: (choice,) if several else choice}
        assert Settings.read(config(**fields))
    (mistake,) = refusal(**{field: ("sd9",) if several else "sd9"})
    assert mistake.startswith(name)
    assert "'sd9'" in mistake
    assert mistake.endswith(", ".join(setting.choices))


BOUNDED = [(name, value, kind) for name, setting, kind in STATED for value in beyond(setting)]


@pytest.mark.parametrize("name, value, kind", BOUNDED)
def test_each_bound_is_kept(name: str, value: float, kind: str) -> None:
    value = int(value) if kind == "int" else float(value)
    shown = (value, 0.5) if kind.startswith("tuple") else value
    (mistake,) = refusal(**{name.replace(".", "__"): shown})
    assert mistake.startswith(f"{name} = {shown!r}")


@pytest.mark.parametrize(
    "name", [name for name, setting, kind in STATED if kind == "float" and setting.bounds]
)
def test_a_bound_refuses_nan(name: str) -> None:
    assert refusal(**{name.replace(".", "__"): float("nan")})[0].startswith(f"{name} = nan")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sample__steps": 0}, "sample.steps = 0 must be at least 1"),
        ({"train__learning_rate": 0.0}, "train.learning_rate = 0.0 must be above 0"),
        ({"train__beta": -0.1}, "train.beta = -0.1 must be at least 0"),
        ({"ema__decay": 1.5}, "ema.decay = 1.5 must be between 0 and 1"),
        ({"seed": -1}, "seed = -1 must be between 0 and 9.22337e+18"),
        ({"run_name": ""}, "run_name is empty: it names the run's folder below output_dir"),
        (
            {"sample__group_size": 1},
            "sample.group_size = 1: an advantage compares at least 2 images of a prompt",
        ),
        (
            {"sample__noise_level": 0.0},
            "sample.noise_level = 0.0: a policy needs noise above 0; published: 0.7",
        ),
        (
            {"sample__kind": "cps", "sample__noise_level": 1.2},
            "sample.noise_level = 1.2: cps turns by noise_level x 90 degrees; at most 1",
        ),
        (
            {"sample__branch_from": 2},
            "sample.branch_from = 2: the first state to be completed must be one of the window's, "
            "0 to 1 (window_size = 2)",
        ),
        (
            {"tracking__trackers": ("wandb", "tensorbord")},
            "tracking.trackers: ['tensorbord'] are not among tensorboard, wandb",
        ),
        (
            {"train__learning_rat": 1.0},
            "train.learning_rat: no such setting; did you mean train.learning_rate?",
        ),
        ({"model": 3}, "model = 3 must be a section of settings"),
        ({"sample__steps": True}, "sample.steps = True must be of type int"),
    ],
)
def test_a_mistake_in_words(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields) == [message]


def test_cps_alone_limits_the_noise() -> None:
    assert Settings.read(config(sample__kind="sde", sample__noise_level=1.2))


def test_a_missing_setting_is_named() -> None:
    c = config()
    del c.sample.steps, c.ema
    with pytest.raises(ValueError) as refused:
        Settings.read(c)
    assert str(refused.value).splitlines() == ["sample.steps is missing", "ema is missing"]


def test_all_mistakes_are_reported_together() -> None:
    """Those of one field, those between fields of a section, and those of other sections."""
    mistakes = refusal(
        run_name="",
        epochs=0,
        sample__kind="cps",
        sample__noise_level=2.0,
        sample__branch_from=9,
        credit__name="luck",
        rewards__scorers={"shapes": {"weight": 0.0}, "other": 0},
        model__text_encoders="drop",
    )
    begins = [
        "run_name is empty",
        "epochs = 0",
        "model.text_encoders = 'drop'",
        "rewards.scorers: every weight is 0",
        "sample.branch_from = 9",
        "sample.noise_level = 2.0",
        "credit.name = 'luck'",
    ]
    assert len(mistakes) == len(begins)
    for mistake, begin in zip(mistakes, begins, strict=True):
        assert mistake.startswith(begin)


@pytest.mark.parametrize(
    "scorers", [{}, {"a": 0.0, "b": 1.0}, {"a": {}}, {"a": {"weight": 0.5}}, {"a": "no number"}]
)
def test_one_weight_is_enough_and_the_reward_set_judges_the_rest(scorers: dict[str, Any]) -> None:
    assert Settings.read(config(rewards__scorers=scorers)).rewards.scorers == scorers


def test_weight_of_a_scorer() -> None:
    assert [weight(scorer) for scorer in (0.5, {"weight": 2.0}, {"device": "cpu"})] == [
        0.5,
        2.0,
        1.0,
    ]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_as_dict_is_the_json_of_the_config(recipe: str) -> None:
    c = tp_grpo.get_config(recipe)
    assert Settings.read(c).as_dict() == json.loads(c.to_json_best_effort())


def test_as_dict_holds_what_a_user_can_set() -> None:
    c = tp_grpo.get_config("shapes_smoke")
    with c.unlocked():
        c.rewards.scorers["my.module:Scorer"] = {"weight": 1, "path": Path("a"), "sizes": (1, 2)}
    c.update_from_flattened_dict(
        {"lora.targets": ("to_q",), "train.max_ratio_dev": float("inf"), "train.beta": 0}
    )
    stored = Settings.read(c).as_dict()
    assert stored == json.loads(c.to_json_best_effort())
    assert stored["lora"]["targets"] == ["to_q"]
    assert stored["rewards"]["scorers"]["my.module:Scorer"]["sizes"] == [1, 2]


def test_what_was_stored_reads_as_the_same_settings() -> None:
    settings = Settings.read(tp_grpo.get_config("pickscore_flux"))
    assert Settings.read(ConfigDict(settings.as_dict(), allow_dotted_keys=True)) == settings


def test_settings_are_read_only_and_can_be_replaced() -> None:
    settings = Settings.read(config())
    with pytest.raises(FrozenInstanceError):
        settings.sample.steps = 3  # type: ignore[misc]
    assert replace(settings, seed=7).seed == 7


def test_a_config_changed_later_changes_no_settings() -> None:
    c = config()
    settings = Settings.read(c)
    c.rewards.scorers.shapes.weight = 0.0
    assert settings.rewards.scorers["shapes"]["weight"] == 1.0


def test_the_base_config_has_every_setting_and_no_other() -> None:
    def names(section: dict[str, Any], prefix: str = "") -> set[str]:
        inner = {name: value for name, value in section.items() if isinstance(value, dict)}
        plain = {prefix + name for name in section if name not in inner or name == "scorers"}
        return plain.union(*(names(v, f"{prefix}{n}.") for n, v in inner.items() if n != "scorers"))

    assert names(base.get_config().to_dict()) == set(NAMES)


def test_every_setting_has_a_sentence() -> None:
    assert not [name for name, setting, _ in STATED if not setting.meaning.endswith(".")]


def test_each_precision_is_known_to_the_models() -> None:
    known = {name: setting.choices for name, setting, _ in STATED}
    assert known["model.dtype"] == tuple(DTYPES)
    assert set(known["model.vae_dtype"]) <= DTYPES.keys()


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    names = [name for name, setting, _ in STATED if setting.path]
    paths = {name.replace(".", "__"): "~/x" for name in names}
    read = Settings.read(config(**paths)).as_dict()
    for name in names:
        section, _, field = name.rpartition(".")
        assert (read[section] if section else read)[field] == "/home/me/x", name
    assert set(names) == {
        *("output_dir", "model.path", "model.adapter", "model.embeddings_cache", "lora.init"),
        *("prompts.train", "prompts.eval", "checkpoint.resume"),
    }


def test_names_may_come_in_one_text() -> None:
    asked = config(tracking__trackers=("tensorboard,wandb",), lora__targets="attn.to_q, attn.to_k")
    read = Settings.read(asked)
    assert read.tracking.trackers == ("tensorboard", "wandb")
    assert read.lora.targets == ("attn.to_q", "attn.to_k")


@pytest.mark.parametrize("best", ["pickscore", "total/exact", "shape", "pickscore/exact"])
def test_a_best_that_is_no_score_of_the_run_names_those_there_are(best: str) -> None:
    (line,) = refusal(checkpoint__best=best)
    assert line == (
        f"checkpoint.best = {best!r}: no evaluation has this score; it is 'total', a scorer "
        "(shapes), one of its extras as 'scorer/extra', or '' for none"
    )


@pytest.mark.parametrize("best", ["", "total", "shapes", "shapes/exact"])
def test_a_best_that_is_a_score_of_the_run(best: str) -> None:
    assert Settings.read(config(checkpoint__best=best)).checkpoint.best == best
