"""scripts/train.py as a user runs it: mistakes in the command. Its endings are in tests/faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import forked

CONFIG = "--config=config/tp_grpo.py:shapes_smoke"


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
        (
            "--config.rewards.scorers.jpeg=0.0",
            CONFIG,
            "is not in the recipe; give all of them: --config.rewards.scorers=\"{'pickscore'",
        ),
        (
            "--config.rewards.scorers.shapes.weight=2.0",
            "--config=config/no.py:shapes_tiny",
            "No such file or directory: 'config/no.py'",
        ),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    argument: str, config: str, message: str, tmp_path: Path
) -> None:
    out = f"--config.output_dir={tmp_path}"
    done = forked.run("scripts/train.py", config, out, argument)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert message in output
    assert "Traceback" not in output, output
    assert not list(tmp_path.rglob("*.safetensors"))
