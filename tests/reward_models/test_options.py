"""Options of a wrong type are refused before anything is loaded, by scorer, option and value."""

from __future__ import annotations

import re
from typing import Any

import pytest

import reward_models
from reward_models import build, options

NAN = float("nan")
REMOTE = "reward_models.client:RemoteScorer"
AT = {"url": "http://127.0.0.1:9", "name": "shapes"}  # arguments of a remote scorer
WRONG: dict[str, tuple[Any, ...]] = {  # by annotation
    "bool": (1, "False", None),
    "float": ("512", True, None, NAN, float("inf")),
    "int": ("512", True, None, 1.5, 2.0, NAN),
    "str": (5, None, ["a"]),
    "Mapping[str, Any] | None": ("seed", 5, ["seed"]),
}


def typed() -> list[tuple[str, str, str]]:
    """Scorer, option and annotation of every option whose type is checked."""
    return [
        (name, parameter.name, parameter.annotation)
        for name in (*reward_models.names(), REMOTE)
        for parameter in options._parameters(reward_models.factory(name))
        if parameter.annotation in WRONG
    ]


def test_the_options_of_all_scorers_are_among_the_typed_ones() -> None:
    some = {("judge", "timeout", "float"), ("deqa", "concurrency", "int")}
    some |= {
        ("jpeg", "quality", "int"),
        ("geneval", "side", "int"),
        ("shapes", "exact_share", "float"),
    }
    some |= {("pickscore_rank", "batch_size", "int"), ("hpsv2", "path", "str")}
    some |= {("general_ocr", "text_score", "float"), (REMOTE, "png", "bool")}
    assert some <= set(typed())


@pytest.mark.parametrize("name, option, annotation", typed())
def test_an_option_of_a_wrong_type_is_named_with_its_value(
    name: str, option: str, annotation: str
) -> None:
    label = "shapes" if name == REMOTE else name
    for value in WRONG[annotation]:
        given = (AT if name == REMOTE else {}) | {option: value}
        label = str(value) if option == "name" else label
        hidden = option in options.SECRET and value is not None
        shown = f"(of type {type(value).__name__})" if hidden else f"= {value!r}"
        words = re.escape(f"{label}: {option} {shown} must be ")
        with pytest.raises(ValueError, match=f"^{words}(a|True)"):
            build(name, **given)


def test_a_number_of_another_kind_is_as_good() -> None:
    numpy = pytest.importorskip("numpy")
    built: Any = build("jpeg", quality=numpy.int64(90), scale=500)
    assert (built.quality, built.scale) == (90, 500)


def test_a_scorer_of_ones_own_reads_its_options_itself() -> None:
    built: Any = build("tests.scorers:Brightness", scale="2.0")
    assert built.scale == "2.0"


@pytest.mark.parametrize("value", [{"a": {1}}, {"a": NAN}, {("a", "b"): 1}])
@pytest.mark.parametrize("name", ["judge", "unifiedreward", "deqa", "pairwise"])
def test_an_extra_body_that_json_cannot_hold_is_refused(name: str, value: dict) -> None:
    words = rf"{name}: extra_body = {re.escape(repr(value))} must be what JSON can hold: "
    with pytest.raises(ValueError, match=words):
        build(name, model="m", extra_body=value)


@pytest.mark.parametrize(
    "variable, make",
    [
        ("RANK", lambda: build(REMOTE, **AT)),
        ("LOCAL_RANK", lambda: build("general_ocr", workers=0)),
        ("LOCAL_WORLD_SIZE", lambda: build("general_ocr")),
    ],
)
def test_a_rank_in_the_environment_must_be_a_number(
    variable: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "node1")
    words = rf"(shapes|general_ocr): the environment's {variable} = 'node1' must be a whole number"
    with pytest.raises(ValueError, match=words):
        make()


def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for token in ("geheim-ü", "secret\nline"):
        with pytest.raises(ValueError, match=r"^shapes: token must be one line of ASCII") as raised:
            build(REMOTE, **AT, token=token)
        assert token[:6] not in str(raised.value)
        monkeypatch.setenv("REWARD_TOKEN", token)
        with pytest.raises(ValueError, match=r"^shapes: the environment's REWARD_TOKEN must be"):
            build(REMOTE, **AT)
