"""Prompt files and generators, and which prompts an epoch visits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp_grpo.data import prompts


def load(path: Path, content: bytes, field: str = "prompts.train") -> prompts.PromptSet:
    path.write_bytes(content)
    return prompts.load(str(path), field=field)


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_text_and_jsonl(tmp_path: Path) -> None:
    assert load(tmp_path / "a.txt", b"a cat\n\n a dog \n").prompts == ["a cat", "a dog"]
    assert load(tmp_path / "bom.txt", b"\xef\xbb\xbfa cat\n").prompts == ["a cat"]
    loaded = load(tmp_path / "a.jsonl", b'{"prompt": "a cat", "tag": "single"}\n')
    assert loaded.prompts == ["a cat"]
    assert loaded.metadata == [{"tag": "single"}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'\n["a"]\n', r"a.jsonl:2: expected an object"),
        ("a.jsonl", b'{"text": "a"}\n', r'a.jsonl:1: "prompt" must be a string'),
        ("a.jsonl", b'{"prompt": "  "}\n', r'a.jsonl:1: "prompt" must be a string'),
        ("a.txt", b"fine\n\xff\xfe\n", r"a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"prompt": "a \\ud83d"}\n', r"a.jsonl:1: .* holds half a character"),
        (
            "a.jsonl",
            b"[" * 200_000,
            r"a.jsonl:1: not JSON that can be read: brackets nested too deeply",
        ),
        (
            "a.txt",
            b"a cat\n" + b"x" * 10_001,
            r"a.txt:2: 10001 characters; a prompt may have 10000",
        ),
        ("a.txt", "a cat".encode("utf-16"), r"a.txt:1: not UTF-8 .*; save the file as UTF-8"),
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
        ("nowhere.txt", "no such file"),
        ("nowhere", "is not a .txt or .jsonl file"),
        ("nowhere.at.all:train", "cannot be imported"),
        ("tp_grpo.shapes.captions:trains", "cannot be imported"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.load(source, field="prompts.eval")


def test_every_bad_line_is_named_up_to_ten(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as three:
        load(tmp_path / "a.jsonl", b'{"prompt": 1}\n{"prompt": "fine"}\n[]\n{\n')
    assert "has 3 bad lines" in str(three.value)
    assert [line.split(": ")[0].rsplit(":")[-1] for line in str(three.value).splitlines()[1:]] == [
        "1",
        "3",
        "4",
    ]
    with pytest.raises(ValueError) as twelve:
        load(tmp_path / "a.jsonl", b"{\n" * 12)
    assert "a.jsonl:10: " in str(twelve.value)
    assert "a.jsonl:11: " not in str(twelve.value)
    assert str(twelve.value).endswith("and 2 more")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_and_blank_lines_of_every_system(tmp_path: Path, end: bytes) -> None:
    content = end.join([b"\xef\xbb\xbfa cat", b"", b" a dog\t", b"  ", "a café".encode(), b""])
    assert load(tmp_path / "a.txt", content).prompts == ["a cat", "a dog", "a café"]


def test_a_repeated_prompt_weighs_more_in_training_and_is_left_out_of_an_evaluation(
    tmp_path: Path,
) -> None:
    content = b"a cat\na dog\na cat \n\nA cat\na dog\n"
    with pytest.warns(
        UserWarning, match=r"2 of 5 prompts repeat an earlier one \(lines 3, 6\); dropped, 3 remain"
    ) as warned:
        loaded = load(tmp_path / "a.txt", content, field="prompts.eval")
    assert loaded.prompts == ["a cat", "a dog", "A cat"]
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=r"2 of 5 .* kept, for more weight"):
        assert load(tmp_path / "a.txt", content).prompts == [
            "a cat",
            "a dog",
            "a cat",
            "A cat",
            "a dog",
        ]
    with pytest.warns(UserWarning, match=r"1 of 2 prompts"):
        lines = b'{"prompt": "a", "n": 1}\n{"prompt": "a", "n": 2}\n'
        assert load(tmp_path / "a.jsonl", lines, field="prompts.eval").metadata == [{"n": 1}]
    with pytest.warns(UserWarning, match=r"\(lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.\)"):
        load(tmp_path / "a.txt", b"a\n" * 13)


def test_a_prompt_longer_than_clip_reads_is_kept_and_reported(tmp_path: Path) -> None:
    fits, long = " ".join(["x"] * 77), " ".join(["x"] * 78)
    assert load(tmp_path / "a.txt", fits.encode()).prompts == [fits]
    with pytest.warns(UserWarning, match=r"1 of 2 prompts have more than 77 words \(line 2\)"):
        assert load(tmp_path / "a.txt", f"{fits}\n{long}".encode()).prompts == [fits, long]
    assert len(load(tmp_path / "a.txt", b"x" * 10_000)) == 1


@pytest.mark.parametrize("name", ["{}.jsonl", "{}_metadata.jsonl", "{}.txt"])
def test_a_folder_holds_both_splits(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        line = split if name.endswith("txt") else json.dumps({"tag": split, "prompt": split})
        (tmp_path / name.format(split)).write_text(line + "\n")
    assert prompts.load(str(tmp_path), field="prompts.train").prompts == ["train"]
    assert prompts.load(str(tmp_path), field="prompts.eval").prompts == ["test"]


def test_flow_grpo_metadata_comes_through_whole(tmp_path: Path) -> None:
    include = [
        {"class": "tv", "count": 1},
        {"class": "cow", "count": 1, "position": ["right of", 0]},
    ]
    entry = {"tag": "position", "include": include, "prompt": "a photo of a cow right of a tv"}
    (tmp_path / "train_metadata.jsonl").write_text(json.dumps(entry))
    loaded = prompts.load(str(tmp_path), field="prompts.train")
    assert loaded.prompts == ["a photo of a cow right of a tv"]
    assert loaded.metadata == [{"tag": "position", "include": include}]


def test_a_folder_that_does_not_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds none of test.jsonl, test_metadata.jsonl, test.txt$"
    ):
        prompts.load(str(tmp_path), field="prompts.eval")
    for name in ("train.jsonl", "train_metadata.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match=r"holds train.jsonl, train_metadata.jsonl; name the file"):
        prompts.load(str(tmp_path), field="prompts.train")
    with pytest.raises(ValueError, match=r"is a folder; name a .txt or .jsonl file"):
        prompts.load(str(tmp_path), field="--prompts")


@pytest.mark.parametrize(
    "source, command",
    [
        ("dataset/geneval/train.jsonl", "geneval"),
        ("dataset/general_ocr", "general_ocr"),
        ("my data/pickscore/test.txt", "pickscore --out 'my data'"),
        ("dataset/drawbench/test.txt", "text FILE --name drawbench"),
        ("dataset/drawbench", "text FILE --name drawbench"),
    ],
)
def test_a_missing_set_names_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        prompts.load(source, field="prompts.train")
    assert str(error.value).endswith(f"with `python scripts/prepare_prompts.py {command}`")
    assert str(error.value).startswith(f"prompts.train = {source!r}")


def test_an_empty_folder_of_a_known_set_names_its_command(tmp_path: Path) -> None:
    (tmp_path / "geneval").mkdir()
    with pytest.raises(
        ValueError, match=rf"holds none of .*; make it with `.* geneval --out {tmp_path}`"
    ):
        prompts.load(str(tmp_path / "geneval"), field="prompts.train")


LINE = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=30
)


@given(st.lists(LINE), st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str
) -> None:
    wanted = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    folder = tmp_path_factory.mktemp("written")
    entries = [
        json.dumps({"prompt": line, "n": number})
        for number, line in enumerate(lines)
        if line.strip()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, written in (("a.txt", lines), ("a.jsonl", entries)):
            if wanted:
                assert (
                    load(folder / name, end.join(written).encode(), "prompts.eval").prompts
                    == wanted
                )


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


def test_byte_order_marks_of_joined_files_are_removed(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    joined = load(tmp_path / "a.txt", mark + b"a cat\n" + mark + b"a dog\na " + mark + b"cow")
    assert joined.prompts == ["a cat", "a dog", "a cow"]
    lines = mark + b'{"prompt": "a cat"}\n' + mark + b'{"prompt": "a \\ufeffdog"}\n'
    assert load(tmp_path / "a.jsonl", lines).prompts == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "text",
    [
        *("a cat.", "node.js on a mug, 3.5 cm", "Mr. Smith", "a cat " * 99, "~ a wave"),
        *("a laptop with main.py", "a cat and/or a dog", "a sign: 'his/hers'"),
    ],
)
def test_a_text_is_a_prompt(text: str) -> None:
    assert prompts.text_or_source(text, field="--prompts").prompts == [text.strip()]


@pytest.mark.parametrize(
    "text, message",
    [
        ("drawbench.csv", "'drawbench.csv' is not a .txt or .jsonl file"),
        ("nowhere.txt", "no such file"),
        ("/data/my prompts/test.txt", "no such file"),
        ("~nobody-of-this-name/mine.jsonl", "no such file"),
        (".", r"'.' is a folder; name a .txt or .jsonl file"),
        ("dataset/drawbench", r"no such file or folder; looked in .* text that looks like a path"),
        ("/data/my prompts", "no such file or folder"),
        ("./my prompts", "no such file or folder"),
        ("../prompts", "no such file or folder"),
        ("~/my prompts", "no such file or folder"),
        ("my prompts.CSV", "no such file or folder"),
        (b"caf\xe9".decode(errors="surrogateescape"), "--prompts: .* holds half a character"),
        (" ", "--prompts: .* must be a string that is not empty"),
    ],
)
def test_a_name_of_a_file_or_a_text_that_no_tokenizer_should_get_is_refused(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.text_or_source(text, field="--prompts")


def test_a_name_that_is_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--prompts = 'xxx.* is not a .txt|cannot be read"):
        prompts.load("x" * 5000, field="--prompts")
