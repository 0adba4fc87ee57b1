"""scripts/prepare_prompts.py as a user runs it: the files, the report, and what is refused."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tp_grpo.data import prompts
from tp_grpo.data.sets import geneval

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_prompts.py"
main = runpy.run_path(str(SCRIPT))["main"]
SPLITS = ("train", "test")


def run(*arguments: object, cwd: Path, **environment: str) -> CompletedProcess[str]:
    """The script in `cwd`: as a process of its own if an environment is named, else in this one."""
    command = list(map(str, arguments))
    if environment:
        env = {**os.environ, "HF_HOME": str(cwd / "hub"), **environment}
        command = [sys.executable, str(SCRIPT), *command]
        return subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120
        )
    back, out, complaints = Path.cwd(), StringIO(), StringIO()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(complaints):
            status = main(command)
    except SystemExit as error:  # argparse's
        status = int(error.code or 0)
    finally:
        os.chdir(back)
    return CompletedProcess(command, status, out.getvalue(), complaints.getvalue())


def succeed(*arguments: object, cwd: Path, **environment: str) -> str:
    result = run(*arguments, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refuse(*arguments: object, cwd: Path, **environment: str) -> str:
    result = run(*arguments, cwd=cwd, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
    return result.stderr


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "arguments, sizes",
    [
        (("geneval",), (1360, 560)),
        (("general_ocr", "--train", "500", "--test", "50"), (500, 50)),
        (("pickscore", "--source", "grammar", "--train", "500", "--test", "50"), (500, 50)),
    ],
)
def test_a_set_is_the_same_every_time_and_is_read_by_its_folder(
    tmp_path: Path, arguments: tuple[str, ...], sizes: tuple[int, int]
) -> None:
    report = succeed(*arguments, cwd=tmp_path, PYTHONHASHSEED="1")
    folder = tmp_path / "dataset" / arguments[0]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.split(".")[0] for path in first) == ["test", "train"], "and no drafts"
    assert report.count(": written, ") == 2
    assert f"{sizes[0]} prompts" in report
    again = succeed(*arguments, cwd=tmp_path, PYTHONHASHSEED="2")
    assert again.count(": unchanged, ") == 2
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = prompts.load(str(folder), field="prompts.train")
        test = prompts.load(str(folder), field="prompts.eval")
    assert (len(train), len(test)) == sizes
    assert set(train.prompts).isdisjoint(test.prompts)


def test_a_file_with_other_content_is_kept_unless_forced(tmp_path: Path) -> None:
    sized = ("general_ocr", "--train", 20, "--test", 5)
    succeed(*sized, cwd=tmp_path)
    mine = tmp_path / "dataset" / "general_ocr" / "train.txt"
    mine.write_text("mine\n")
    error = refuse(*sized, "--test", 6, cwd=tmp_path)
    assert "train.txt: exists with other content; --force replaces it" in error
    assert mine.read_text() == "mine\n"
    assert len(lines(mine.with_name("test.txt"))) == 5, "nothing is half written"
    assert "written, 20 prompts" in succeed(*sized, "--force", cwd=tmp_path)
    assert len(lines(mine)) == 20


def test_geneval_sizes_and_what_to_keep_out(tmp_path: Path) -> None:
    official = {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    }
    (tmp_path / "official.jsonl").write_text(json.dumps(official) + "\n\n")
    asked = (
        "--train",
        "single_object=40",
        "counting=7",
        "--test",
        "single_object=39",
        "--keep-out",
        "official.jsonl",
    )
    report = succeed("geneval", *asked, "--out", "elsewhere", cwd=tmp_path)
    assert (
        "color_attr 300, colors 100, counting 7, position 700, single_object 40, two_object 100"
        in report
    )
    train, test = (
        [json.loads(line) for line in lines(tmp_path / f"elsewhere/geneval/{s}.jsonl")]
        for s in SPLITS
    )
    assert Counter(entry["tag"] for entry in test)["single_object"] == 39
    assert official["prompt"] not in {entry["prompt"] for entry in train + test}
    assert list(train[0])[:1] + list(train[0])[-1:] == ["tag", "prompt"]


def test_geneval_without_the_official_scenes_has_fewer_for_the_test(tmp_path: Path) -> None:
    """Its 553 lines ask for every single object and for a third of all counts."""
    official, _ = geneval.build(seed=1, train={"single_object": 80, "counting": 80}, test={})
    (tmp_path / "official.jsonl").write_text("\n".join(map(json.dumps, official)))
    report = succeed("geneval", "--keep-out", "official.jsonl", cwd=tmp_path)
    assert "single_object: 0 test prompts, not 80: --keep-out leaves no more" in report
    assert "counting: 0 test prompts, not 80: --keep-out leaves no more" in report
    train, test = (
        Counter(json.loads(line)["tag"] for line in lines(tmp_path / f"dataset/geneval/{s}.jsonl"))
        for s in SPLITS
    )
    assert train == {tag: n for tag, n in geneval.TRAIN_SIZES.items() if n}
    left = {"two_object": 100, "colors": 100, "position": 100, "color_attr": 100}
    assert test == left


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("geneval", "--train", "color=3"),
            "'color=3' is not TAG=N with TAG one of single_object, two_object",
        ),
        (("geneval", "--train", "colors=many"), "'many' is not a number of prompts"),
        (
            ("geneval", "--train", "counting=200"),
            "counting: 200 training and 80 test prompts were asked, but there",
        ),
        (("geneval", "--keep-out", "notes.txt"), "notes.txt:2: not a line of GenEval metadata"),
        (("geneval", "--keep-out", "a.jsonl"), """a.jsonl:1: not a line of GenEval metadata (Ty"""),
        (("geneval", "--keep-out", "a.jsonl"), """ "class" is ['a'], not of type str)"""),
        (("geneval", "--keep-out", "b.jsonl"), """ "position" begins with ['left of'], not"""),
        (
            ("geneval", "--keep-out", "latin.txt"),
            "latin.txt:2: not UTF-8 (invalid continuation byte); save the file as",
        ),
        (
            ("geneval", "--keep-out", "nowhere.jsonl"),
            "nowhere.jsonl cannot be read: No such file or directory",
        ),
        (("general_ocr", "--train", "-1"), "'-1' is not a number of prompts"),
        (
            ("text", "nowhere.txt", "--name", "x"),
            "nowhere.txt cannot be read: No such file or directory",
        ),
        (("text", "notes.md", "--name", "x"), "notes.md: expected .txt, .csv or .tsv"),
        (("text", "notes.txt", "--name", "geneval"), "--name 'geneval': letters, digits"),
        (("text", "notes.txt", "--name", "../x"), "--name '../x': letters, digits"),
        (("text", "empty.txt", "--name", "x"), "empty.txt holds no prompts"),
        (("text", "latin.txt", "--name", "x"), "latin.txt:2: not UTF-8"),
        (("text", "tabs.txt", "--name", "x"), "tabs.txt:2: 2 TABs; expected a prompt"),
        (
            ("text", "tabs.txt", "--name", "x"),
            "tabs.txt:3: 10001 characters; a prompt may have 10000",
        ),
        (
            ("text", "words.csv", "--name", "x"),
            "words.csv:1: no column is called prompt, prompts, caption, text",
        ),
        (
            ("text", "torn.csv", "--name", "x"),
            "torn.csv:3: 3 cells, but the header names 2 columns",
        ),
    ],
)
def test_what_is_refused_says_why_and_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("\n[1, 2]\n")
    clause: dict = {"class": "a", "count": 1}
    for name, wrong in (
        ("a", clause | {"class": ["a"]}),
        ("b", clause | {"position": [["left of"], 0]}),
    ):
        entry = {"tag": "colors", "include": [wrong]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(entry))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("a cat\na café\n".encode("latin-1"))
    (tmp_path / "tabs.txt").write_text(f"a cat\tx\na\tb\tc\n{'x' * 10_001}\n")
    (tmp_path / "words.csv").write_text("Word,Tag\na,b\n")
    (tmp_path / "torn.csv").write_text("Prompts,Tag\na,b\na,b,c\n")
    assert message in refuse(*arguments, cwd=tmp_path)
    assert not (tmp_path / "dataset").exists()


def test_a_list_of_prompts_is_cleaned_and_each_kept_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa  cat\r\n\r\n a cat \r\ncafe\u0301\r\n".encode())
    report = succeed("text", "list.txt", "--name", "mine", cwd=tmp_path)
    assert "list.txt: duplicates dropped: 1 (line 3)" in report
    assert lines(tmp_path / "dataset/mine/test.txt") == ["a cat", "caf\u00e9"]


def test_empty_and_long_prompts_are_reported_by_line(tmp_path: Path) -> None:
    long = "word " * 77 + "more"
    (tmp_path / "list.csv").write_text(
        f"Prompts,Category\na cat,Animals\n,Colors\n{long},Long\n ,Colors\n"
    )
    report = succeed("text", "list.csv", "--name", "mine", cwd=tmp_path)
    assert "list.csv: empty prompts dropped: 2 (lines 3, 5)" in report
    assert "list.csv: kept with more than 77 words" in report
    assert ": 1 (line 4)" in report
    with pytest.warns(UserWarning, match="1 of 2 prompts have more than 77 words"):
        loaded = prompts.load(str(tmp_path / "dataset" / "mine"), field="prompts.eval")
    assert loaded.prompts == ["a cat", long]


def test_a_tag_without_a_prompt_is_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\tcounting\n\n  two dogs\tcounting\t\n")
    report = succeed("text", "list.txt", "--name", "mine", cwd=tmp_path)
    assert "list.txt: empty prompts dropped: 1 (line 1)" in report
    loaded = prompts.load(str(tmp_path / "dataset" / "mine"), field="prompts.eval")
    assert loaded.prompts == ["two dogs"]
    assert loaded.metadata == [{"tag": "counting"}]


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.txt", "a red car, parked\tColors\ntwo dogs\n"),
        ("list.csv", 'Prompts,Category\n"a red car, parked",Colors\ntwo dogs,\n'),
        ("list.tsv", "Category\tPrompts\nColors\ta red car, parked\n\ttwo dogs\n"),
    ],
)
def test_tags_are_kept_as_metadata(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert "Colors 1, no tag 1" in succeed("text", name, "--name", "drawbench", cwd=tmp_path)
    loaded = prompts.load(str(tmp_path / "dataset" / "drawbench"), field="prompts.eval")
    assert loaded.prompts == ["a red car, parked", "two dogs"]
    assert loaded.metadata == [{"tag": "Colors"}, {}]


def test_pickscore_from_a_data_set_with_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    captions = [f"a cat, number {i}" for i in range(30)] + ["A cat, number 3", "  ", "x " * 78]
    data = tmp_path / "data" / "train.jsonl"
    data.parent.mkdir()
    data.write_text("\n".join(json.dumps({"caption": caption}) for caption in captions))
    asked = ("pickscore", "--source", "data", "--train", 25)
    succeed(*asked, "--test", 5, cwd=tmp_path)
    train, test = (lines(tmp_path / "dataset/pickscore" / f"{split}.txt") for split in SPLITS)
    assert (len(train), len(test)) == (25, 5)
    assert len({line.lower() for line in train + test}) == 30
    monkeypatch.setenv("HOME", str(tmp_path))
    home = ("pickscore", "--source", "~/data", "--train", 25, "--out", "again")
    succeed(*home, "--test", 5, cwd=tmp_path)
    assert lines(tmp_path / "again/pickscore/train.txt") == train
    error = refuse(*asked, "--test", 6, "--force", cwd=tmp_path)
    assert "data has 30 usable prompts, but 25 for training and 6 for the test" in error
    data.write_text('{"text": "a cat"}')
    error = refuse(*asked, "--force", cwd=tmp_path)
    assert 'data has no column "caption"; its columns are text' in error
    for caption, kind in ((3, "int64"), (["a cat"], "nested"), ({"en": "a cat"}, "nested")):
        data.write_text(json.dumps({"caption": caption}))
        error = refuse(*asked, "--force", cwd=tmp_path)
        assert f'data: the column "caption" is of type {kind}; captions are texts' in error


@pytest.mark.parametrize("missing", ["package", "hub"])
def test_pickscore_without_the_hub_says_so_and_takes_the_grammar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    environment = {}
    if missing == "package":
        monkeypatch.setitem(sys.modules, "datasets", None)
        why = "needs the package datasets: pip install datasets"
    else:
        environment = {"HF_HUB_OFFLINE": "1"}
        why = "cannot be loaded: "
    asked = ("pickscore", "--train", 20, "--test", 5)
    error = refuse(*asked, "--source", "hub", cwd=tmp_path, **environment)
    assert why in error
    assert "--source grammar makes prompts without the hub" in error
    result = run(*asked, cwd=tmp_path, **environment)
    assert result.returncode == 0
    assert why in result.stderr
    assert "Using our own grammar instead" in result.stderr
    written = (tmp_path / "dataset/pickscore/train.txt").read_bytes()
    succeed(*asked, "--source", "grammar", "--out", "other", cwd=tmp_path)
    assert written == (tmp_path / "other/pickscore/train.txt").read_bytes()


@pytest.mark.parametrize("command", [(), ("geneval",), ("general_ocr",), ("pickscore",), ("text",)])
def test_help_is_in_words(tmp_path: Path, command: tuple[str, ...]) -> None:
    report = succeed(*command, "--help", cwd=tmp_path)
    assert "usage:" in report
    assert max(map(len, report.splitlines())) <= 120
    assert (
        f"python scripts/prepare_prompts.py {command[0] if command else 'text FILE --name NAME'}"
        in report
    )
