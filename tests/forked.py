"""Scripts in processes forked with the imports done, as `python scripts/NAME.py` would run them."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.runs import ROOT, fork

DEADLINE = 240  # seconds


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/NAME.py on the smallest recipe to its end."""
    return run(f"scripts/{name}.py", "--config=config/tp_grpo.py:shapes_smoke", *arguments)


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a script, given by its path below `folder`, with these arguments to its end, there."""
    with tempfile.TemporaryDirectory() as written:
        out, err = Path(written, "out"), Path(written, "err")
        process = fork(_run, command, folder, out, err)
        process.join(DEADLINE)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(err.read_text())
        code = process.exitcode
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def printed(name: str, *arguments: str) -> str:
    """What `script` printed; it must end well."""
    done = script(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run(command: tuple[str, ...], folder: Path, out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT / "scripts"))
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
