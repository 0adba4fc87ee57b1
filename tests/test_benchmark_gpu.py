"""benchmarks/gpu.py: every job at tiny size, its limits of time, and what it says of failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
from gpu_jobs import JOBS, case, options, table
from gpu_jobs.case import Case, CaseError, Child, Job

ROOT = Path(__file__).resolve().parents[1]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", JOBS)
def test_every_case_of_a_job_runs_at_tiny_size(name: str, tmp_path: Path) -> None:
    command = ("benchmarks/gpu.py", "--tiny", "--only", name, "--out", str(tmp_path))
    done = forked.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path)
    assert [row["case"] for row in found] == [c.name for c in JOBS[name].cases(True)]
    report = (tmp_path / "report.md").read_text()
    assert JOBS[name].title in report
    assert "Without figures" not in report
    for row in found:
        assert row.get("ratio_dev") in (None, 0), "an unmoved policy repeats what was sampled"


def test_the_jobs_are_listed_with_their_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*JOBS, "all"]
    seconds = [int(line.split()[1]) for line in lines]
    assert min(seconds) > 0 and seconds[-1] == sum(seconds[:-1])


def test_a_file_in_the_place_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(SystemExit) as ending:
        gpu.main(["--out", "~/figures"])
    assert ending.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --out: {tmp_path / 'figures'} cannot be written" in line


def test_an_option_whose_package_is_not_installed_is_left_out() -> None:
    names = {each.name for each in options.cases(False)}
    assert "as the recipe" in names
    flash = "FLUX.1-dev, model.attention_backend = flash"
    assert flash not in names, "flash_attn is in no requirements"


def jobs(*cases: Case) -> list[Job]:
    return [Job("fake", "A title.", lambda tiny: list(cases))]


def fails() -> case.Figures:
    print("some words")
    raise ValueError("no such thing")


def starts(then: Callable[[], object]) -> case.Figures:
    """A process of its own, which must end with it."""
    child = Child(lambda: time.sleep(60), Path("child.log"))
    Path("pid").write_text(str(child.pid))
    then()
    return {}


def test_what_fails_is_said_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "JOBS", {"fake": jobs()[0]})
    session = gpu.Session(tmp_path, 60, tiny=False)
    good = Case("good", 1, lambda: {"seconds, s": 1.23456, "words": "yes", "nothing": None})
    assert session.run(jobs(Case("bad", 1, fails), good, Case("long", 1000, fails))) == 1
    assert rows(tmp_path)[0] | {"case": "good", "seconds, s": 1.23456} == rows(tmp_path)[0]
    report = (tmp_path / "report.md").read_text()
    assert "| good | 1.23 | yes |" in report
    assert "- fake: bad: ended with code 1: ValueError: no such thing" in report
    assert "- fake: long: did not fit, 1000 s of " in report
    assert "some words" in (tmp_path / "fake/bad.log").read_text()
    again = Case("good", 1, lambda: {"seconds, s": 2.0})
    assert gpu.Session(tmp_path, 60, tiny=False).run(jobs(again, Case("next", 1, dict))) == 0
    assert [(row["case"], row.get("seconds, s")) for row in rows(tmp_path)] == [
        ("good", 2.0),
        ("next", None),
    ]


@pytest.mark.parametrize(
    "then, words",
    [
        (lambda: time.sleep(60), "stopped after 1 s"),
        (fails, "ended with code 1: ValueError: no such thing"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal 9: it printed nothing"),
    ],
)
def test_a_case_that_fails_ends_with_its_processes(
    then: Callable[[], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    with pytest.raises(CaseError, match=words):
        case.run(Case("slow", 1, lambda: starts(then)), tmp_path, 1 if "stopped" in words else 30)
    assert time.monotonic() - begun < 30
    started = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while state_of(started) not in ("", "Z"):
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)


STARTED = """
import runpy, sys, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
def used(*_): raise AssertionError("the GPU is used at import")
torch.cuda._lazy_init = used
sys.argv, sys.path[0] = ["gpu.py", "--list"], "benchmarks"
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def test_its_imports_do_not_use_the_gpu() -> None:
    """A pretended one: what has used CUDA cannot be forked."""
    command = [sys.executable, "-c", STARTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("health"), done.stderr


def state_of(pid: int) -> str:
    """Of a process, Z if it waits to be forgotten; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_rows_with_other_figures_have_a_table_of_their_own() -> None:
    found = [
        {"job": "j", "case": "device", "GB": 80.0},
        {"job": "j", "case": "a", "s": 1.0, "ratio_dev": 0.0},
        {"job": "j", "case": "b", "s": 2.0, "ratio_dev": None},
    ]
    text = table.markdown(found, {"j": "Title."}, [], tiny=False)
    assert "| device |  |\n|---|---|\n| GB | 80 |" in text
    assert "| case | s | ratio_dev |\n|---|---|---|\n| a | 1 | 0 |\n| b | 2 |  |" in text
