"""quickstart.sh, with a pretended interpreter: what it says when something is missing, and when it installs.

The pretended Python is a shell script that answers the few questions asked of it, makes a `.venv` holding a copy of
itself, and writes every call of pip and of the launcher to a file.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *"sys.version_info"*) echo "${FAKE_VERSION:-3.12}" ;;
    *"import venv, ensurepip"*) exit "${FAKE_NO_VENV:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*)
        echo "pip ${*:$#}" >>"$CALLS"
        echo "${FAKE_PIP_SAYS:-Installing collected packages: one, two}"
        if [ -n "${FAKE_PIP_KILLS:-}" ]; then kill -KILL "$(cat "$SHELL_ID")"; fi
        exit "${FAKE_PIP_FAILS:-0}" ;;
    *" launch "*) printf '%s\\n' "$@" >"$CALLS.launch"; echo "runs/quickstart/report.html" ;;
    *"torch.cuda"*) exit 1 ;;
    *) echo "not foreseen: $*" >&2; exit 99 ;;
esac
"""

CORE, PACKAGE = "pip requirements.txt", "pip ."


class Checkout:
    """A copy of the scripts in a folder whose name has a space, with the pretended interpreter beside it."""

    def __init__(self, folder: Path):
        self.root = folder / "a copy"
        self.python = folder / "python"
        self.calls = folder / "calls"
        self.env: dict[str, str] = {}
        shutil.copytree(
            ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("requirements.txt", "requirements-dev.txt", "setup.py"):
            shutil.copy(ROOT / name, self.root)
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def quickstart(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run from another working directory; `env` is laid over PYTHON=the pretended interpreter."""
        shell_id = self.calls.with_name("shell_id")
        env = {
            "PYTHON": str(self.python),
            "CALLS": str(self.calls),
            "SHELL_ID": str(shell_id),
            **self.env,
            **env,
        }
        command = f'echo $$ >"{shell_id}"; exec bash "$0" "$@"'
        return subprocess.run(
            ["bash", "-c", command, str(self.root / "scripts" / "quickstart.sh"), *arguments],
            env={**os.environ, **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def take_calls(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    # The disk is pretended too: whether these tests pass shall not depend on what is free here.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "df").write_text(
        '#!/bin/bash\necho header\necho "disk 0 0 ${FAKE_FREE_KB:-99999999} 0% /"\n'
    )
    (tools / "df").chmod(0o755)
    made.env["PATH"] = f"{tools}:{os.environ['PATH']}"
    return made


def fails(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    for word in words:
        assert word in result.stderr


def test_interpreter_that_is_not_there(checkout: Checkout) -> None:
    result = checkout.quickstart(PYTHON="/nowhere/python3")
    fails(result, "'/nowhere/python3' is not a program", "3.10 or newer", "PYTHON=")


def test_program_that_is_not_python(checkout: Checkout) -> None:
    fails(
        checkout.quickstart(PYTHON="/bin/false"),
        "'/bin/false' does not run as a Python interpreter",
    )


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.9"])
def test_python_too_old(checkout: Checkout, version: str) -> None:
    fails(
        checkout.quickstart(FAKE_VERSION=version), f"is Python {version}; 3.10 or newer is needed"
    )
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_python_new_enough(checkout: Checkout, version: str) -> None:
    assert checkout.quickstart(FAKE_VERSION=version).returncode == 0


def test_python_without_venv(checkout: Checkout) -> None:
    fails(
        checkout.quickstart(FAKE_NO_VENV="1"),
        "no venv or no ensurepip module",
        "apt-get install python3-venv",
    )
    assert not (checkout.root / ".venv").exists()


def test_too_little_disk(checkout: Checkout) -> None:
    result = checkout.quickstart(FAKE_FREE_KB=str(2 * 1024 * 1024))
    fails(result, "too little disk: 2 GB free", "GB needed")
    assert checkout.take_calls() == []


def test_first_run_installs_and_launches(checkout: Checkout) -> None:
    result = checkout.quickstart("--config.seed=7", "--config.note=two words")
    assert result.returncode == 0, result.stderr
    assert checkout.take_calls() == [CORE, PACKAGE]
    arguments = (checkout.calls.parent / "calls.launch").read_text().splitlines()
    assert arguments[-4:] == [
        "--config=config/tp_grpo.py:shapes_tiny",
        "--config.seed=7",
        "--config.note=two words",
        "--config.run_name=quickstart",
    ]
    assert result.stdout.splitlines()[-1] == "runs/quickstart/report.html"


def test_own_config_and_run_name_replace_the_defaults(checkout: Checkout) -> None:
    own = ["--config=config/flow_grpo.py:shapes_tiny", "--config.run_name=flow"]
    checkout.quickstart(*own)
    arguments = (checkout.calls.parent / "calls.launch").read_text().splitlines()
    assert arguments[arguments.index("scripts/train.py") + 1 :] == own


def test_second_run_installs_nothing(checkout: Checkout) -> None:
    checkout.quickstart()
    checkout.take_calls()
    assert checkout.quickstart().returncode == 0
    assert checkout.take_calls() == []
    # Once made, .venv needs no other interpreter.
    assert checkout.quickstart(PYTHON="", FAKE_NO_VENV="1").returncode == 0
    assert checkout.take_calls() == []


def test_changed_requirements_are_installed(checkout: Checkout) -> None:
    checkout.quickstart()
    checkout.take_calls()
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("six==1.17.0\n")
    checkout.quickstart()
    assert checkout.take_calls() == [CORE, PACKAGE]


def test_another_python_makes_venv_anew(checkout: Checkout) -> None:
    checkout.quickstart(FAKE_VERSION="3.12")
    checkout.take_calls()
    # The pretended version is one for both interpreters, so the one in .venv is told apart by hand.
    inner = checkout.root / ".venv" / "bin" / "python"
    inner.write_text(inner.read_text().replace("${FAKE_VERSION:-3.12}", "3.11"))
    result = checkout.quickstart()
    assert "PYTHON asks for 3.12" in result.stdout
    assert checkout.take_calls() == [CORE, PACKAGE]


def test_broken_venv_is_made_anew(checkout: Checkout) -> None:
    checkout.quickstart()
    checkout.take_calls()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    result = checkout.quickstart()
    assert ".venv is broken" in result.stdout
    assert checkout.take_calls() == [CORE, PACKAGE]


def test_killed_installation_starts_again(checkout: Checkout) -> None:
    assert checkout.quickstart(FAKE_PIP_KILLS="1").returncode == -9
    checkout.take_calls()
    (checkout.root / ".venv" / "half a package").touch()
    result = checkout.quickstart()
    assert result.returncode == 0
    assert "cut short" in result.stdout
    assert checkout.take_calls() == [CORE, PACKAGE]
    assert not (checkout.root / ".venv" / "half a package").exists()


@pytest.mark.parametrize(
    ("pip_says", "words"),
    [
        (
            "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution",
            "a download failed",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "error: command 'gcc' failed: No such file or directory",
            "apt-get install build-essential",
        ),
        ("ERROR: No matching distribution found for torch==2.12.1", "no wheel for this machine"),
        ("something else", "its last words"),
    ],
)
def test_pip_failure_is_explained(checkout: Checkout, pip_says: str, words: str) -> None:
    result = checkout.quickstart(FAKE_PIP_FAILS="1", FAKE_PIP_SAYS=pip_says)
    fails(result, words)
    assert result.stderr.count("error: ") - pip_says.count("error: ") <= 1
    assert checkout.take_calls() == [CORE]


def test_failed_download_keeps_a_good_venv(checkout: Checkout) -> None:
    checkout.quickstart()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("six==1.17.0\n")
    fails(
        checkout.quickstart(FAKE_PIP_FAILS="1", FAKE_PIP_SAYS="Read timed out"), "a download failed"
    )
    assert checkout.quickstart().returncode == 0
    assert kept.exists()


def test_failed_training_fails_the_script(checkout: Checkout) -> None:
    checkout.python.write_text(FAKE_PYTHON.replace('echo "runs/quickstart/report.html"', "exit 3"))
    assert checkout.quickstart().returncode == 3
