"""A prompt set that a function of the user's makes, and its mistakes in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tp_grpo.data import prompts


def pairs() -> list[Any]:
    return [("a cat", {"n": 1}), "a dog", ("", {}), ("a cow", None)]


def test_a_function_that_gives_something_else() -> None:
    with pytest.raises(ValueError) as error:
        prompts.load(f"{__name__}:pairs", field="prompts.eval")
    assert "has 3 bad lines" in str(error.value)
    assert all(
        f"item {number}: expected (prompt, metadata)" in str(error.value) for number in (2, 3, 4)
    )


def with_metadata(metadata: dict[Any, Any]) -> prompts.PromptSet:
    home = sys.modules[__name__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "pairs", lambda: [("a cat", {}), ("a dog", metadata)])
        return prompts.load(f"{__name__}:pairs", field="prompts.eval")


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"tags": {"a", "b"}}, r"metadata\['tags'\] is of type set, which JSON cannot hold: use"),
        ({"list": [1, object()]}, r"metadata\['list'\]\[1\] is of type object, which JSON"),
        ({1: "a", "tag": "b"}, r"metadata has the key 1 of type int: use a string"),
        ({"of": {("a", 1): 2}}, r"metadata\['of'\] has the key \('a', 1\) of type tuple"),
    ],
)
def test_metadata_that_json_cannot_hold(metadata: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"item 2: {message}"):
        with_metadata(metadata)


def test_metadata_that_hold_themselves() -> None:
    metadata: dict[str, Any] = {}
    metadata["again"] = metadata
    with pytest.raises(ValueError, match="item 2: the metadata are nested too deeply"):
        with_metadata(metadata)


def test_metadata_that_json_can_hold_are_kept() -> None:
    metadata = {"a": [1, 2.5, True, None], "b": {"c": ("d",)}}
    loaded = with_metadata(metadata)
    assert loaded.metadata == [{}, metadata]
    assert len(loaded.digest) == 16


MODULE = """
A_LIST = [("a cat", {})]
def of_size(n): return [("a cat", {})] * n
def maybe(n=1): return [("a cat", {})] * n
def nothing(): pass
def broken():
    yield "a cat", {}
    yield missing
def gives_up(): raise SystemExit("no data")
"""


@pytest.mark.parametrize(
    "function, message",
    [
        ("A_LIST", "is of type list; it must be a function without arguments that returns"),
        ("of_size", ": missing a required argument: 'n'; it must be a function without arg"),
        ("nothing", " gives no prompts: .*: TypeError: 'NoneType' object is not iterable"),
        ("gives_up", r" gives no prompts: .*own_prompts\.py:9: SystemExit: no data"),
        ("broken", r" gives no prompts: .*own_prompts\.py:8: NameError: name 'missing' is not"),
    ],
)
def test_what_is_no_function_of_pairs(
    function: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_prompts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert prompts.load("own_prompts:maybe", field="prompts.train").prompts == ["a cat"]
    with pytest.raises(ValueError, match=f"^prompts.train = 'own_prompts:{function}'.*{message}"):
        prompts.load(f"own_prompts:{function}", field="prompts.train")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("cut_short", "\ndef pairs(:\n", r"cut_short\.py:2: SyntaxError: "),
        ("unnamed", "\n\nmissing\n", r"unnamed\.py:3: NameError: name 'missing' is not defined"),
        ("no_number", "\nint('abc')\n", r"no_number\.py:2: ValueError: invalid literal for int"),
        ("ends", "import sys\nsys.exit('usage: ends')\n", r"ends\.py:2: SystemExit: usage: ends"),
    ],
)
def test_a_module_that_cannot_be_loaded(
    name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^prompts.train = .* cannot be imported: .*{message}"):
        prompts.load(f"{name}:pairs", field="prompts.train")


def test_a_package_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("import os\nos.environ['NO_SUCH_KEY']\n")
    (tmp_path / "own_package" / "prompts.py").write_text("def pairs(): return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"cannot be imported: .*own_package/__init__\.py:2: KeyError: NO_SUCH"
    ):
        prompts.load("own_package.prompts:pairs", field="prompts.train")
