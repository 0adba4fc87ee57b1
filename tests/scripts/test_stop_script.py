"""SIGTERM to the documented script itself, under the real launcher."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("--config.run_name=run", "--config.epochs=1000", "--config.eval.every=1000")


def start(out: Path) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    embedded = {
        "MODEL_NAME": "shapes",
        "REWARD": "smoke",
        "LAUNCH": "cpu",
        "NUM_GPUS": "2",
        "OMP_NUM_THREADS": "1",
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "scripts/single_node/tp_grpo.sh", f"--config.output_dir={out}", *FIELDS],
        cwd=ROOT,
        env={**os.environ, **embedded, "PATH": path, "MASTER_PORT": port},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_after(epoch: int, process: subprocess.Popen[str], out: Path) -> tuple[int, str]:
    """The last epoch that is saved, and what was said."""
    saved, deadline = out / f"run/checkpoints/epoch-{epoch}/state.json", time.monotonic() + 120
    while not saved.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in output and "\nstopped by " in output, (
        output
    )
    last = re.search(
        r"everything up to epoch (\d+) is in .*/run; the same command resumes from there", output
    )
    assert last, output
    return int(last[1]), output


def test_sigterm_to_the_script_ends_with_code_0_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    last, _ = stop_after(1, start(tmp_path), tmp_path)
    after, output = stop_after(last + 1, start(tmp_path), tmp_path)
    assert f"resuming from epoch {last} of {tmp_path}/run" in output and after > last, output
