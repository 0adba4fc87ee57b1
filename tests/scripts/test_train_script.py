"""scripts/train.py as a user runs it: errors before weights load, Ctrl-C, kill -9, and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=config/tp_grpo.py:shapes_smoke"


def start(*arguments: str, out: Path, config: str = CONFIG) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/train.py", config, f"--config.output_dir={out}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, out: Path, config: str = CONFIG) -> tuple[int, str]:
    process = start(*arguments, out=out, config=config)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


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
        ("--config.model.path=no/such/folder", CONFIG, "there is no such folder"),
        ("--config.sample.group_size=5", CONFIG, "the nearest that do are"),
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
    assert code == 2 and message in output and "Traceback" not in output, output
    assert not list(tmp_path.rglob("*.safetensors"))


def test_ctrl_c_and_kill_in_mid_epoch_lose_nothing(tmp_path: Path) -> None:
    arguments = ("--config.epochs=4", "--config.eval.every=4")
    code, output = run(*arguments, "--config.run_name=undisturbed", out=tmp_path)
    assert code == 0 and output.rstrip().endswith("undisturbed/report.html"), output

    folder = tmp_path / "hurt"
    process = start(*arguments, "--config.run_name=hurt", out=tmp_path)
    wait_for(folder / "checkpoints" / "epoch-1" / "state.json", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert (
        process.returncode == 130
        and "stopped by Ctrl-C" in output
        and "resumes from there" in output
    ), output
    assert "Traceback" not in output

    process = start(*arguments, "--config.run_name=hurt", out=tmp_path)
    newest = max(
        int(p.name.removeprefix("epoch-")) for p in (folder / "checkpoints").glob("epoch-*")
    )
    wait_for(folder / "checkpoints" / f"epoch-{newest + 1}" / "state.json", process)
    process.kill()
    process.communicate()

    code, output = run(*arguments, "--config.run_name=hurt", out=tmp_path)
    assert code == 0, output
    for name in (
        "checkpoints/epoch-4/trainable.safetensors",
        "adapter/pytorch_lora_weights.safetensors",
    ):
        ours, expected = (
            load_file(tmp_path / run_name / name) for run_name in ("hurt", "undisturbed")
        )
        assert (
            all((ours[key] == expected[key]).all() for key in expected)
            and ours.keys() == expected.keys()
        )
