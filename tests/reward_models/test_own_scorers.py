"""Scorers of one's own: what a name may stand for, and what a scorer may return."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reward_models
from reward_models import NotScores, Scores, wire
from reward_models.doctor import OK, examine
from tp_grpo.rewards.reward_set import RewardError, RewardSet

IMAGES = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 51, 255)])
BATCH = (IMAGES, ["a", "b", "c"], [{}, {}, {}])


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("Brightness", {"scale": 2.0}, [0, 0.4, 2]),
        ("make_brightness", {"scale": 2.0}, [0, 0.4, 2]),
        ("brightness", {}, [0, 0.2, 1]),
        ("scaled", {}, [0, 0.2, 1]),
        ("scaled", {"scale": 2.0}, [0, 0.4, 2]),
    ],
)
def test_a_name_may_be_a_class_a_factory_or_the_scorer_itself(
    name: str, options: dict, expected: list[float]
) -> None:
    scorer = f"tests.scorers:{name}"
    rewards = RewardSet({scorer: {"weight": 1.0, "batch_size": 2, **options}}).score(*BATCH)
    np.testing.assert_allclose(rewards.total, expected, rtol=1e-6)
    reply = wire.encode_scores(reward_models.build(scorer, **options)(*BATCH), 3)
    np.testing.assert_allclose(reply["score"], expected, rtol=1e-6)
    if name == "scaled":
        dark = rewards.extras["tests.scorers:scaled/dark"]
        np.testing.assert_allclose(dark, 1 - np.array(expected), rtol=1e-6)
    assert examine(scorer, scorer, options).state == OK


def test_a_function_keeps_its_attributes_when_it_has_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.scorers.scaled.check", print, raising=False)
    built: Any = reward_models.build("tests.scorers:scaled", scale=2.0)
    assert built.check is print


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("two_arguments", {}, "A function that scores has three arguments without a default"),
        ("brightness", {"scale": 2.0}, "'tests.scorers:brightness' does not take the options"),
        ("scaled", {"size": 2.0}, "'tests.scorers:scaled' does not take the options"),
        ("make_brightness", {}, "does not take the options"),
        ("builds_nothing", {}, "built an object of type int, which cannot be called"),
        ("__doc__", {}, "'tests.scorers:__doc__' is of type str, no class or function"),
    ],
)
def test_what_is_no_scorer_is_refused_when_it_is_built(
    name: str, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        reward_models.build(f"tests.scorers:{name}", **options)


class Undeclared:
    """Takes groups, and forgets to say so."""

    def __call__(self, images: Any, prompts: Any, metadata: Any, groups: Any) -> list[float]:
        return [0.0] * len(images)


def undeclared(images: Any, prompts: Any, metadata: Any, groups: Any) -> list[float]:
    return [0.0] * len(images)


class TwoArguments:
    def __call__(self, images: Any, prompts: Any) -> list[float]:
        return [0.0] * len(images)


@pytest.mark.parametrize("name", ["Undeclared", "undeclared"])
def test_a_scorer_that_takes_groups_must_declare_it(name: str) -> None:
    with pytest.raises(ValueError, match="sets scores_groups = True"):
        reward_models.build(f"{__name__}:{name}")


def test_a_scorer_whose_call_takes_no_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the arguments images, prompts, metadata: too"):
        reward_models.build(f"{__name__}:TwoArguments")


@pytest.mark.parametrize(
    "name", [".rewards:X", ":X", "tests.scorers:", "dir/rewards:X", "a..b:X", "a b:X", "os:path.X"]
)
def test_a_name_without_a_module_or_a_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must name a module by its whole path"):
        reward_models.build(name)


def test_a_module_that_is_not_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_slip.py").write_text("class X(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = r"cannot be imported from 'my_slip:X': .*/my_slip\.py:1: SyntaxError: invalid syntax"
    with pytest.raises(ValueError, match=words):
        reward_models.build("my_slip:X")


SLIPS = """
import os

class Constructor:
    def __init__(self, key="MY_KEY_X"):
        self.key = os.environ[key]
    def __call__(self, images, prompts, metadata): return [0.0] * len(images)
class Inherits(Constructor): pass
def engine(): raise RuntimeError("no engine")
def number(): return int("abc")
def kinds(): return 1 + "a"
def ends(): raise SystemExit("usage: mine")
class Check:
    def __call__(self, images, prompts, metadata): return [0.0] * len(images)
    def check(self, prompts, metadata): return [data["tag"] for data in metadata]
class Moves(Check):
    def to(self, device): self.model.to(device)
"""


@pytest.fixture
def slips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module of scorers that raise."""
    (tmp_path / "my_slips.py").write_text(SLIPS)
    monkeypatch.syspath_prepend(tmp_path)
    yield str(tmp_path / "my_slips.py")
    sys.modules.pop("my_slips", None)


@pytest.mark.parametrize(
    "name, message",
    [
        ("Constructor", ":6: KeyError: MY_KEY_X"),
        ("Inherits", ":6: KeyError: MY_KEY_X"),
        ("engine", ":9: RuntimeError: no engine"),
        ("number", ":10: ValueError: invalid literal for int() with base 10: 'abc'"),
        ("kinds", ":11: TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        ("ends", ":12: SystemExit: usage: mine"),
    ],
)
def test_what_a_constructor_raises_is_named_with_its_line(
    name: str, message: str, slips: str
) -> None:
    with pytest.raises(ValueError) as raised:
        RewardSet({f"my_slips:{name}": 1.0})
    words = f"rewards: the scorer 'my_slips:{name}' cannot be built: {slips}{message}"
    assert str(raised.value) == words


@pytest.mark.parametrize(
    "text, message",
    [
        ("import os\nos.environ['MY_KEY_X']\n", ":2: KeyError: MY_KEY_X"),
        ("import nosuchmodule\n", ":1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("raise SystemExit(3)\n", ":1: SystemExit: 3"),
    ],
)
def test_what_a_module_raises_is_named_with_its_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my_raising_module.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as raised:
        RewardSet({"my_raising_module:X": 1.0})
    assert str(raised.value).endswith(f"from 'my_raising_module:X': {file}{message}")


def test_what_a_check_raises_is_named_with_its_line(slips: str) -> None:
    rewards = RewardSet({"my_slips:Check": 1.0})
    with pytest.raises(ValueError) as raised:
        rewards.check_prompts(["a cat"], [{}])
    words = f"rewards.scorers.my_slips:Check cannot check the prompts: {slips}:15: KeyError: tag"
    assert str(raised.value) == words


def test_what_moving_a_scorer_raises_is_named_with_its_line(slips: str) -> None:
    words = rf"my_slips:Moves cannot be moved to its device: {slips}:17: AttributeError: "
    with pytest.raises(ValueError, match=words):
        RewardSet({"my_slips:Moves": 1.0})


def test_a_module_alone_is_no_scorer() -> None:
    with pytest.raises(
        ValueError, match=r"no scorer is called 'tests\.scorers'\. Known: aesthetic"
    ):
        reward_models.build("tests.scorers")


@pytest.mark.parametrize(
    "returned",
    [
        Scores(np.array([1, 2], np.float32)),
        np.array([1, 2]),
        torch.tensor([1, 2], dtype=torch.bfloat16, requires_grad=True),
        [1, 2.0],
        (1, 2),
        ([1, 2], {}),
        (np.array([1.0, 2.0]), {"x": [3, None]}),
    ],
)
def test_an_array_a_list_or_a_pair_is_as_good_as_scores(returned: Any) -> None:
    scores = Scores.read(returned, 2)
    assert scores.score.dtype == np.float32
    assert scores.score.tolist() == [1, 2]
    if scores.extras:
        np.testing.assert_array_equal(scores.extras["x"], np.array([3, np.nan], np.float32))


@pytest.mark.parametrize(
    "returned, words",
    [
        (None, "returned the score as NoneType: return Scores, or an array or a list with one"),
        (0.5, "returned the score as float: return"),
        (np.float32(0.5), "returned the score as float32: return"),
        ("ab", "returned the score as str: return"),
        ({"a": 1}, "returned the score as dict: return"),
        ([1], "the score of shape (1,) for 2 images: return one number per image"),
        ([[1], [2]], "the score of shape (2, 1) for 2 images"),
        (["a", "b"], "the score with values that are not numbers"),
        (([1, 2], [3, 4]), "extras of type list: return a dict, {name: one number per image}"),
        (([1, 2], {"x": [3]}), "the extra 'x' of shape (1,) for 2 images"),
        (Scores(np.zeros(2), {"x": 3}), "the extra 'x' as int"),  # type: ignore[dict-item]
    ],
)
def test_other_lengths_and_types_are_refused_in_words(returned: Any, words: str) -> None:
    with pytest.raises(NotScores, match=re.escape(words)):
        Scores.read(returned, 2)


def test_a_run_stops_at_a_scorer_that_returns_something_else() -> None:
    rewards = RewardSet({"tests.scorers:Brightness": 1.0})
    rewards.scorers["tests.scorers:Brightness"] = lambda *batch: [1.0]
    words = r"failed with NotScores: the scorer returned the score of shape \(1,\) for 3 images"
    with pytest.raises(RewardError, match=words):
        rewards.score(*BATCH)


def test_a_key_among_the_options_is_not_shown() -> None:
    with pytest.raises(
        ValueError, match=r"does not take the options \{'size': 2, 'api_key': '...'"
    ):
        reward_models.build("tests.scorers:brightness", size=2, api_key="very-secret")
