"""The doctor: its findings, its table and its exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reward_models
from reward_models import doctor
from reward_models.check import GOLDEN_TEXT, Case, golden_images
from reward_models.doctor import (
    FAILED,
    MISSING,
    OK,
    Report,
    _options,
    check_of,
    examine,
    exit_code,
    main,
    out_of_order,
    table,
)
from reward_models.loading import Source
from tests.reward_models.judged import Endpoint

MODULE = "tests.reward_models.checked"


def examined(name: str, **options: object) -> Report:
    return examine(f"{MODULE}:{name}", f"{MODULE}:{name}", options)


def test_the_scorers_whose_weights_are_here_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["general_ocr", "shapes", f"{MODULE}:Jpeg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines[3:]}
    assert states == {"general_ocr": "ok", "shapes": "ok", f"{MODULE}:Jpeg": "ok"}
    assert "text 1.000, plain 0.000, noise 0.000" in lines[3]


def test_every_registered_scorer_has_an_importable_check() -> None:
    for name in reward_models.names():
        check = check_of(name)
        assert all(
            case.image.dtype == np.uint8 and case.image.ndim == 3 for case in check.cases()
        ), name


def test_scores_in_the_wrong_order_fail() -> None:
    report = examined("Jpeg", sign=-1)
    assert report.state == FAILED
    assert "text must score more than noise, but" in report.why
    assert set(report.scores) == {"noise", "text", "plain"}
    assert examined("Blind").why == "text got no score"


def test_the_reason_of_a_scorer_is_reported() -> None:
    silent, other = examined("Explains", silent=True), examined("Explains", silent=False)
    assert (silent.state, silent.why) == (FAILED, "text got no score; it is dark")
    assert (other.state, other.why) == (OK, "it is dark")


def test_a_judge_that_gives_no_marks_is_reported_with_its_answer(endpoint: Endpoint) -> None:
    endpoint.answer = lambda pixel, question: "No idea."
    report = examine("judge", "judge", {"url": endpoint.url, "model": "eye-7b"})
    assert report.state == FAILED
    assert report.why.startswith("text got no score; judge: 3 of 3 answers: no mark from 1 to 5")
    assert report.why.endswith("'No idea.'")


def test_out_of_order_by_hand() -> None:
    image = golden_images(8)["plain"]
    cases = [Case("a", image, "", 1), Case("b", image, "", 0), Case("c", image, "", 0)]
    assert out_of_order(cases, np.array([0.5, 0.1, 0.4])) == ""
    assert (
        out_of_order(cases, np.array([0.5, 0.1, 0.5]))
        == "a must score more than c, but 0.5 is not above 0.5"
    )


def test_a_scorer_without_a_check_is_asked_for_finite_scores_only() -> None:
    assert examined("Undeclared", sign=-1).state == OK


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    absent, plain, judge = examined("Absent"), examined("Plain"), examined("Judge")
    assert absent.state == MISSING
    assert absent.why == "not installed: no_such_package"
    assert absent.advice == ('pip install "tp_grpo[ocr]"',)
    assert plain.advice == ("pip install no_such_package",)
    assert judge.state == MISSING
    assert "OpenAI-compatible endpoint" in judge.why
    assert examined("Judge", sign=1).state == OK, "options name the endpoint"


def test_weights_are_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    report = examined("Heavy")
    assert report.state == MISSING
    assert report.why == "weights not in the cache: someone/heavy (3.9 GB)"
    assert report.advice[0] == "hf download someone/heavy config.json model.bin"
    assert "path=FOLDER" in report.advice[1]


@pytest.mark.parametrize(
    "name, local",
    [
        (
            "aesthetic",
            "--set aesthetic.clip_path=FOLDER --set aesthetic.path=FOLDER/aesthetic-model.pth",
        ),
        (
            "geneval",
            "--set geneval.path=FOLDER --set geneval.color_path=FOLDER/open_clip_model.safetensors",
        ),
        (
            "imagereward",
            "--set imagereward.path=FOLDER/ImageReward.pt --set imagereward.tokenizer_path=FOLDER",
        ),
        ("hpsv2", "--set hpsv2.path=FOLDER/HPS_v2.1_compressed.pt"),
    ],
)
def test_the_hint_names_an_option_for_every_missing_weight(
    name: str, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    report = examine(name, name, {})
    assert report.advice[-1] == f"or with local copies: {local}"
    repo = tmp_path / "models--someone--heavy"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "config.json").write_text("{}")
    assert examined("Heavy").state == MISSING, "half a download is not enough"
    (repo / "snapshots" / "abc" / "model.bin").write_text("")
    assert examined("Heavy").state == OK
    assert examined("Heavy", path="/models/heavy").state == OK


def scorers_with_weights() -> list[tuple[str, Source]]:
    checks = {name: check_of(name) for name in reward_models.names()}
    return [(name, weights) for name, check in checks.items() for weights in check.weights]


@pytest.mark.parametrize("name, weights", scorers_with_weights())
def test_a_config_alone_does_not_count_as_weights_and_the_command_names_files(
    name: str, weights: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / f"models--{weights.repo.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "config.json").write_text("{}")
    assert not weights.in_cache(), name
    words = weights.command.split()
    assert words[:3] == ["hf", "download", weights.repo]
    assert set(weights.needed or weights.files) <= set(words[3:])


def test_memory_is_measured_per_image() -> None:
    hungry, jpeg = examined("Hungry").cost, examined("Jpeg").cost
    assert hungry
    assert jpeg
    assert 25 < hungry.image < 60
    assert jpeg.image < 10
    assert 0 < jpeg.seconds < 1


def test_a_scorer_that_kills_its_process_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{MODULE}:Dies", f"{MODULE}:Jpeg"]) == 1
    output = capsys.readouterr().out
    assert "its process died" in output
    assert output.splitlines()[-1].startswith(f"{MODULE}:Jpeg  ok")


def test_a_scorer_that_does_not_build_says_why() -> None:
    assert examined("Jpeg", sing=1).why.startswith(
        "ValueError: rewards: the scorer 'tests.reward_models.checked:Jpeg' does not take"
    )
    assert examine("a", "no.such.module:A", {}).state == FAILED


@pytest.mark.parametrize(
    "states, named, code",
    [
        ((OK,), True, 0),
        ((OK, MISSING), False, 0),
        ((OK, MISSING), True, 1),
        ((OK, FAILED), False, 1),
    ],
)
def test_exit_code(states: tuple[str, ...], named: bool, code: int) -> None:
    assert exit_code([Report("a", state) for state in states], named) == code


def test_options_reach_the_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{MODULE}:Jpeg", "--set", f"{MODULE}:Jpeg.sign=-1"]) == 1
    assert "must score more" in capsys.readouterr().out
    assert doctor._options(["a.path=/x=y", "a.n=3", "b:C.d.on=true"], ["a", "b:C.d"]) == {
        "a": {"path": "/x=y", "n": 3},
        "b:C.d": {"on": True},
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["shape"], "no scorer is called 'shape'; did you mean 'shapes'"),
        (["shapes", "--set", "share=1"], "--set share=1: not NAME.OPTION=VALUE"),
        (["shapes", "--set", "jpeg.sign=1"], "NAME one of shapes"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_table_is_aligned() -> None:
    cost = doctor.Cost(0.25, 160.4, 11.6)
    text = table(
        [
            Report("a", OK, scores={"x": 1.0}, cost=cost),
            Report("longer_name", MISSING, "no", ("pip install b",)),
        ]
    )
    assert text.splitlines() == [
        "scorer       state    s/image  MB loaded  MB/image  golden images",
        "a            ok         0.250        160      11.6  x 1.000",
        "longer_name  missing",
        "             no",
        "             pip install b",
    ]


def test_golden_images_are_what_they_are_called() -> None:
    images = golden_images(512)
    assert len({image.shape for image in images.values()}) == 1
    assert len(GOLDEN_TEXT) > 0
    assert len(np.unique(images["plain"].reshape(-1, 3), axis=0)) == 1
    dark = (images["text"] < 128).all(-1)
    assert 0.005 < dark.mean() < 0.2
    assert abs(np.argwhere(dark).mean(0) - 256).max() < 10
    assert abs(images["noise"].mean() - 127.5) < 1


@pytest.mark.parametrize("text, value", [("True", True), ("False", False), ("None", None)])
def test_an_option_may_be_written_as_python_writes_it(text: str, value: object) -> None:
    assert _options([f"jpeg.x={text}"], ["jpeg"]) == {"jpeg": {"x": value}}
