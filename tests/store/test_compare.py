"""Configs compared: the lines of a difference, and what may change on resuming or branching off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config import tp_grpo
from tp_grpo.store.compare import CONTENT, changed_scores, check_same_run, differences

OLD = {
    "seed": 1,
    "epochs": 5,
    "lora": {"rank": 4},
    "train": {"learning_rate": 1.0, "betas": [0.9, 0.99]},
    "tracking": {"project": "a"},
}


def test_each_field_that_differs_is_a_line_in_order_of_name() -> None:
    assert differences({"c": 1, "b": [1, 2], "a": 0}, {"d": 3, "b": (1, 2), "a": 1}) == {
        "a": "  a: 0 then, 1 now",
        "c": "  c: 1 then, None now",
        "d": "  d: None then, 3 now",
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 9, "tracking": {"project": "b"}},
        {"train": {"learning_rate": 1.0, "betas": (0.9, 0.99)}},
    ],
)
def test_fields_that_do_not_matter_may_change(changed: dict, tmp_path: Path) -> None:
    check_same_run(OLD, {**OLD, **changed}, tmp_path)


def test_fields_that_matter_may_not_change(tmp_path: Path) -> None:
    now = {**OLD, "epochs": 9, "train": {"learning_rate": 2.0, "betas": [0.9, 0.99]}}
    with pytest.raises(ValueError, match=r"train.learning_rate: 1.0 then, 2.0 now") as refused:
        check_same_run(OLD, now, tmp_path)
    assert "epochs" not in str(refused.value)


def scoring(**options: object) -> dict:
    return {"rewards": {"scorers": {"judge": {"question": "quality", **options}}}}


def test_how_a_scorer_elsewhere_is_reached_may_change(tmp_path: Path) -> None:
    then = scoring(url="http://a:1/v1", concurrency=4, workers=1)
    now = scoring(url="http://b:2/v1/", timeout=9.0, attempts=1, api_key="K", png=True, in_flight=1)
    check_same_run(then, now, tmp_path)
    with pytest.raises(ValueError, match=r"judge.question: 'quality' then, 'other' now") as refused:
        check_same_run(then, scoring(url="http://b:2", question="other"), tmp_path)
    assert "url" not in str(refused.value)


def test_a_scorers_path_may_be_written_in_another_way(tmp_path: Path) -> None:
    home = str(Path.home())
    then = scoring(path="~/clip", color_path="/a/b")
    check_same_run(then, scoring(path=f"{home}/clip/", color_path="/a//b/"), tmp_path)
    with pytest.raises(ValueError, match=r"color_path: '/a/b' then, '/a/c' now"):
        check_same_run(then, scoring(path="~/clip", color_path="/a/c"), tmp_path)


def test_a_run_that_branches_off_must_share_what_its_weights_belong_to(tmp_path: Path) -> None:
    now = {**OLD, "train": {"learning_rate": 2.0, "betas": [0.5]}, "seed": 2}
    check_same_run(OLD, now, tmp_path, branches=True)
    with pytest.raises(ValueError, match=r"lora.rank: 4 then, 8 now\n.*must keep these") as refused:
        check_same_run(OLD, {**now, "lora": {"rank": 8}}, tmp_path, branches=True)
    assert "seed" not in str(refused.value)


def test_a_run_from_before_a_setting_did_what_its_default_says(tmp_path: Path) -> None:
    now = json.loads(tp_grpo.get_config("shapes_smoke").to_json_best_effort())
    then = {name: value for name, value in now.items() if name != "objective"}
    younger = ("groups", "fork", "window", "window_stop", "window_every")
    then["sample"] = {name: v for name, v in now["sample"].items() if name not in younger}
    then["train"] = {name: v for name, v in now["train"].items() if name != "guidance_scale"}
    then["advantage"] = {name: now["advantage"][name] for name in ("global_std", "clip")}
    check_same_run(then, now, tmp_path)
    now["objective"]["name"] = "dppo"
    with pytest.raises(ValueError, match=r"objective.name: 'grpo' then, 'dppo' now"):
        check_same_run(then, now, tmp_path)


def test_a_field_that_is_new_for_another_reason_is_a_difference(tmp_path: Path) -> None:
    then = {"rewards": {"scorers": {"shapes": 1.0}}}
    now = {"rewards": {"scorers": {"shapes": 1.0, "ocr": 1.0}}}
    with pytest.raises(ValueError, match=r"rewards\.scorers\.ocr\.weight: None then, 1\.0 now"):
        check_same_run(then, now, tmp_path)


@pytest.mark.parametrize(
    "then, now",
    [
        (1.0, {"weight": 1.0}),
        (1, {"weight": 1.0, "batch_size": 4}),
        ({}, {"weight": 1.0}),
        ({"path": "models/p"}, {"path": "{here}/models/p/"}),
    ],
)
def test_a_scorer_may_be_written_in_another_way(
    then: object, now: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now = json.loads(json.dumps(now).replace("{here}", str(tmp_path)))
    for a, b in ((then, now), (now, then)):
        old, new = ({"scorers": {"judge": options}} for options in (a, b))
        check_same_run({"rewards": old}, {"rewards": new}, tmp_path)
        assert changed_scores(old, new) == []
    with pytest.raises(ValueError, match=r"scorers\.judge\.weight: 1(\.0)? then, 0\.5 now"):
        check_same_run(
            {"rewards": {"scorers": {"judge": then}}},
            {"rewards": {"scorers": {"judge": 0.5}}},
            tmp_path,
        )


@pytest.mark.parametrize("field", ["model.path", "model.adapter"])
def test_a_branch_of_a_model_whose_files_were_replaced_is_refused(
    field: str, tmp_path: Path
) -> None:
    then = {**OLD, "model": {"path": "/data/name", "adapter": "a"}, f"{field}{CONTENT}": "abc"}
    now = {**then, f"{field}{CONTENT}": "def"}
    words = rf"{field} \(content\): 'abc' then, 'def' now\n.*must keep these"
    with pytest.raises(ValueError, match=words):
        check_same_run(then, now, tmp_path, branches=True)


@pytest.mark.parametrize("branches", [False, True])
def test_the_same_files_under_another_path_are_the_same(tmp_path: Path, branches: bool) -> None:
    field = f"model.path{CONTENT}"
    then = {**OLD, "model": {"path": "owner/name"}, field: "abc"}
    moved = {**then, "model": {"path": "/data/name/"}}
    check_same_run(then, moved, tmp_path, branches)
    with pytest.raises(ValueError, match=r"model.path: 'owner/name' then, '/data/name/' now"):
        check_same_run(then, {**moved, field: "def"}, tmp_path, branches)
    older = {**OLD, "model": {"path": "owner/name"}}  # kept no digest
    check_same_run(older, then, tmp_path, branches)
    with pytest.raises(ValueError, match=r"model.path: 'owner/name' then"):
        check_same_run(older, moved, tmp_path, branches)
