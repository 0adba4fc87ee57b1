"""Files and folders as people name them: what cannot be is one line, before anything loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import forked
from tests.faults.runs import ROOT

CONFIG = "--config=config/tp_grpo.py:shapes_smoke"
FILE = "a folder that is a file"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / FILE
    path.write_text("")
    return path


def refused(*command: str) -> str:
    """The one line that is printed."""
    done = forked.run(*command)
    output = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "command",
    [
        ("scripts/train.py", CONFIG, "--config.output_dir={}"),
        ("scripts/train.py", CONFIG, "--config.output_dir={}/below"),
        ("scripts/generate.py", CONFIG, "--prompts=a cat", "--out={}"),
        ("scripts/evaluate.py", CONFIG, "--out={}"),
        ("scripts/evaluate.py", CONFIG, "--config.output_dir={}"),
    ],
)
def test_a_place_that_cannot_be_written(command: tuple[str, ...], file: Path) -> None:
    line = refused(*(word.format(file) for word in command))
    assert FILE in line and "cannot be written" in line
    assert file.read_text() == ""


def test_a_report_never_takes_the_place_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    line = refused("scripts/report.py", str(tmp_path), f"--out={tmp_path}")
    assert f"--out {tmp_path} is a folder; name a file, as in {tmp_path}/report.html" in line
    assert (tmp_path / "metrics.jsonl").is_file()


def test_a_report_names_the_option_whose_folder_cannot_be_written(file: Path) -> None:
    curves = f"--out={file}/below/report.html"
    assert refused("scripts/report.py", "runs/mine", curves).startswith(f"error: --out: {file}")
    assert refused("scripts/report.py", "runs/mine", f"--png={file}").startswith("error: --png: ")


def test_a_file_that_is_no_prompt_file_is_never_drawn_as_text(file: Path) -> None:
    for text in ("drawbench.csv", "prompts/mine.parquet", str(file)):
        line = refused("scripts/generate.py", CONFIG, f"--prompts={text}")
        assert f"--prompts = {text!r} is not a .txt or .jsonl file" in line


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_too_long_for_a_file_is_said(length: int) -> None:
    line = refused("scripts/evaluate.py", CONFIG, f"--prompts={'x' * length}")
    assert "--prompts = 'xxx" in line and len(line) < 500


def test_a_report_of_what_is_not_there(tmp_path: Path) -> None:
    assert "nowhere" in refused("scripts/report.py", str(tmp_path / "nowhere"))


def test_a_config_in_the_home_folder() -> None:
    line = refused("scripts/estimate.py", "--config=~/no such file.py:shapes_smoke")
    assert "/no such file.py" in line and "~" not in line


@pytest.mark.parametrize("folder", ["scripts", "benchmarks"])
def test_every_option_that_is_a_path_takes_the_home_folder(folder: str) -> None:
    """The shell leaves the ~ of --out=~/x as it is."""
    sources = {path.name: path.read_text() for path in (ROOT / folder).glob("*.py")}
    assert [name for name, source in sources.items() if "type=Path" in source] == []
    assert [name for name, source in sources.items() if "type=expanded" in source]
