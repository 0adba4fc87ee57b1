"""`--help` of every script: exit code 0, what it does, an example, every option."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted((ROOT / "scripts").glob("[!_]*.py"))
SHELL = sorted(path for path in (ROOT / "scripts").rglob("[!_]*.sh"))


def shown(*command: str) -> str:
    done = subprocess.run(
        [*command, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},  # as of some schedulers' logs
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", PYTHON, ids=lambda path: path.name)
def test_help_of_a_python_script(script: Path) -> None:
    text = shown(sys.executable, str(script.relative_to(ROOT)))
    assert f"python scripts/{script.name} " in text.replace("\n", " \n"), "an example"
    source = script.read_text()
    options = re.findall(r'flags\.DEFINE_\w+\(\s*"([\w-]+)"|add_argument\(\s*"--([\w-]+)"', source)
    # The --help of a command of prepare_prompts lists that command's options.
    missing = [name for pair in options for name in pair if name and f"--{name}" not in text]
    assert not missing or "COMMAND --help" in text
    assert "from _config import" in source or "terminal.accept_any_text()" in source
    if "from _config import" in source:
        assert "--config=FILE.py:RECIPE" in text
        assert "--config.FIELD=VALUE" in text
        assert "shapes_tiny" in text


@pytest.mark.parametrize("script", SHELL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_of_a_shell_script_prints_its_first_lines_and_does_nothing(script: Path) -> None:
    text = shown("bash", str(script.relative_to(ROOT)))
    assert re.search(r"bash scripts/\S+\.sh", text), "an example"
    first = script.read_text().splitlines()[1].removeprefix("# ")
    assert text.splitlines()[0] == first
    assert "set -euo" not in text


def test_the_check_before_a_launch_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/_reach.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "python scripts/_reach.py RANK ADDRESS PORT SECONDS" in done.stderr
