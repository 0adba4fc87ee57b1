"""scripts/train.py as a user runs it: mistakes in the command. Its endings are in tests/faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=config/tp_grpo.py:shapes_smoke"


def run(*arguments: str, out: Path, config: str = CONFIG) -> tuple[int, str]:
    command = [sys.executable, "scripts/train.py", config, f"--config.output_dir={out}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "argument, config, message",
    [
        (
            "--config.sample.step=4",
            CONFIG,
            "--config.sample.step=4: no such field: 'step' Did you mean \"steps\"",
        ),
        (
            "--config.smaple.steps=4",
            CONFIG,
            "--config.smaple.steps=4: no such field: 'smaple' Did you mean \"sample\"",
        ),
        (
            "--config.epochs=1",
            "--config=config/no.py:shapes_tiny",
            "No such file or directory: 'config/no.py'",
        ),
        ("--config.sample.steps=many", CONFIG, "many"),
        ("--config.model.path=no/such/folder", CONFIG, "is neither a folder nor a hub id"),
        ("--config.sample.group_size=5", CONFIG, "the nearest that work are"),
        (
            "--config.epochs=1",
            "--config=config/tp_grpo.py:shapes_tny",
            "did you mean 'shapes_tiny'",
        ),
        ("sample.steps=4", CONFIG, "are not options"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    argument: str, config: str, message: str, tmp_path: Path
) -> None:
    code, output = run(argument, out=tmp_path, config=config)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output, output
    assert not list(tmp_path.rglob("*.safetensors"))
