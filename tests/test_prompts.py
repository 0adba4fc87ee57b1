"""Prompt files and generators, and which prompts an epoch visits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tp_grpo import prompts


def load(path: Path, content: bytes) -> prompts.PromptSet:
    path.write_bytes(content)
    return prompts.load(str(path), field="prompts.train")


def test_text_and_jsonl(tmp_path: Path) -> None:
    assert load(tmp_path / "a.txt", b"a cat\n\n a dog \n").prompts == ["a cat", "a dog"]
    assert load(tmp_path / "bom.txt", b"\xef\xbb\xbfa cat\n").prompts == ["a cat"]
    found = load(tmp_path / "a.jsonl", b'{"prompt": "a cat", "tag": "single"}\n')
    assert found.prompts == ["a cat"] and found.metadata == [{"tag": "single"}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'\n["a"]\n', r"a.jsonl:2: expected an object"),
        ("a.jsonl", b'{"text": "a"}\n', r'a.jsonl:1: "prompt" must be a string'),
        ("a.jsonl", b'{"prompt": "  "}\n', r'a.jsonl:1: "prompt" must be a string'),
        ("a.txt", b"fine\n\xff\xfe\n", r"a.txt:2: not UTF-8"),
        ("a.txt", b"\n\n", "holds no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name, content)


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "prompts.eval is empty"),
        ("nowhere.txt", "there is no such file"),
        ("nowhere", "neither a .txt nor a .jsonl"),
        ("nowhere.at.all:train", "cannot be imported"),
        ("tp_grpo.shapes.captions:trains", "cannot be imported"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.load(source, field="prompts.eval")


def test_epochs_pass_over_all_prompts_without_repeating_one_in_an_epoch() -> None:
    epochs = [prompts.epoch_groups(10, seed=1, epoch=e, groups=5) for e in range(6)]
    for first, second in zip(epochs[::2], epochs[1::2], strict=True):
        assert sorted(first + second) == list(range(10))
    assert epochs[0] != epochs[2], "every pass has its own order"
    assert epochs == [prompts.epoch_groups(10, seed=1, epoch=e, groups=5) for e in range(6)]
    assert all(len(set(prompts.epoch_groups(10, seed=1, epoch=e, groups=3))) == 3 for e in range(9))


def test_more_groups_than_prompts() -> None:
    with pytest.raises(ValueError, match=r"sample.groups_per_epoch = 5, but prompts.train holds 4"):
        prompts.epoch_groups(4, seed=0, epoch=0, groups=5)
