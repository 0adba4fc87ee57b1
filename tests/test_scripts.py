"""quickstart.sh and test.sh with a pretended Python and uv: what they report, when they install.

The pretended Python is a shell script that answers the few questions asked of it, makes a `.venv`
holding a copy of itself, and installs the pretended uv, which writes its arguments to a file.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The real Python, as if it were of FAKE_VERSION, answers whether it is new enough.
FAKE_PYTHON = f"""#!/bin/bash
case "$*" in
    *"print("*"sys.version_info"*) echo "${{FAKE_VERSION:-3.12}}" ;;
    *"sys.version_info"*)
        lacks=${{FAKE_NO_VENV:+"sys.modules['ensurepip'] = None"}}
        version=${{FAKE_VERSION:-3.12}}
        exec {sys.executable} -S -c "import sys; sys.version_info = (${{version/./, }}); $lacks
$2" ;;
    *"sys._base_executable"*) echo "$(dirname "$CALLS")/python" ;;
    "-m venv "*) mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python" ;;
    "-m pip config get global.index-url") echo "${{FAKE_PIP_CONFIG:?}}" ;;
    "-m pip install "*)
        echo "pip ${{*:$#}}" >>"$CALLS"
        cp "$(dirname "$CALLS")/uv" "$(dirname "$0")/uv" ;;
    "scripts/train.py "*) printf '%s\\n' "$@" >"$CALLS.steps"; echo "runs/quickstart/report.html" ;;
    "-m ruff "* | "-m mypy "* | *lint-imports | "-m pytest "*) echo "$*" >>"$CALLS.steps" ;;
    *"torch.cuda"*) exit 1 ;;
    *) echo "not foreseen: $*" >&2; exit 99 ;;
esac
"""

FAKE_UV = """#!/bin/bash
case "$*" in
    --version) ;;
    "cache dir") echo "${FAKE_CACHE:-$(dirname "$CALLS")/cache}" ;;
    "pip install --python "*)
        shift 3
        [ "$1" = "$(cd "$(dirname "$1")" && pwd)/python" ] && shift
        echo "uv $*" >>"$CALLS"
        env >"$CALLS.env"
        if [ -n "$FAKE_UV_SAYS" ]; then echo "$FAKE_UV_SAYS" >&2; fi
        if [ -n "$FAKE_UV_WRITES" ]; then sleep 0.02; touch "$VENV/lib/half a package"; fi
        if [ -n "$FAKE_UV_WAITS" ]; then touch "$CALLS.waits"; fi
        while [ -e "$CALLS.waits" ]; do sleep 0.02; done
        if [ -n "$FAKE_UV_KILLS" ]; then kill -KILL "$(cat "$CALLS.shell")"; fi
        exit "${FAKE_UV_FAILS:-0}" ;;
    *) echo "not foreseen: $*" >&2; exit 99 ;;
esac
"""

CORE, PACKAGE = "uv -rrequirements.txt", "uv --no-deps --no-build-isolation -e ."
DEV = "uv -rrequirements.txt -rrequirements-dev.txt"


class Checkout:
    """The scripts in a folder whose name has a space, next to the pretended Python and uv."""

    def __init__(self, folder: Path):
        self.root = folder / "a copy"
        self.python = folder / "python"
        self.uv = folder / "uv"
        self.calls = folder / "calls"
        shutil.copytree(
            ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("requirements.txt", "requirements-dev.txt", "setup.py"):
            shutil.copy(ROOT / name, self.root)
        # The disk is pretended too: whether these tests pass shall not depend on what is free here.
        disk = '#!/bin/bash\necho header\necho "disk 0 0 ${FAKE_FREE_KB:-99999999} 0% /"\n'
        tools = folder / "tools"
        tools.mkdir()
        for file, text in (
            (self.python, FAKE_PYTHON),
            (self.uv, FAKE_UV),
            (tools / "df", disk),
            (tools / "uv", FAKE_UV),
        ):
            file.write_text(text)
            file.chmod(0o755)
        clean = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("UV_", "PIP_", "FAKE_", "OMP_"))
        }
        self.env = clean | {
            "PYTHON": str(self.python),
            "CALLS": str(self.calls),
            "VENV": str(self.venv),
            "HOME": str(folder / "home"),
            "PATH": f"{tools}:{os.environ['PATH']}",
        }

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """From another working directory."""
        command = 'echo $$ >"$CALLS.shell"; exec bash "$0" "$@"'
        return subprocess.Popen(
            ["bash", "-c", command, str(self.root / "scripts" / script), *arguments],
            env=self.env | env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        with self.start(script, *arguments, **env) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def quickstart(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("quickstart.sh", *arguments, **env)

    def take_calls(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls

    def steps(self) -> list[str]:
        """The arguments of scripts/train.py, a line each; or the steps of test.sh."""
        return self.calls.with_name("calls.steps").read_text().splitlines()

    def uv_env(self) -> dict[str, str]:
        """uv's environment in its last call."""
        lines = self.calls.with_name("calls.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def change_requirements(self) -> None:
        with (self.root / "requirements.txt").open("a") as file:
            file.write("six==1.17.0\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    """A checkout whose .venv is complete."""
    result = checkout.quickstart()
    assert result.returncode == 0, result.stderr
    assert checkout.take_calls() == [CORE, PACKAGE]
    (checkout.venv / "kept").touch()
    return checkout


def fails(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    for word in words:
        assert word in result.stderr


def is_made_anew(checkout: Checkout, reason: str, **env: str) -> None:
    result = checkout.quickstart(**env)
    assert result.returncode == 0, result.stderr
    assert f"making .venv with Python 3.12 (until now: {reason})" in result.stdout
    assert checkout.take_calls() == [CORE, PACKAGE]
    assert not (checkout.venv / "kept").exists()


def is_installed_in_place(checkout: Checkout) -> None:
    result = checkout.quickstart()
    assert result.returncode == 0, result.stderr
    assert checkout.take_calls() == [CORE, PACKAGE]
    assert (checkout.venv / "kept").exists()


# What is missing


@pytest.mark.parametrize(
    "python, words", [("/nowhere/python3", "No such file"), ("python3.99", "command not found")]
)
def test_interpreter_that_is_not_there(checkout: Checkout, python: str, words: str) -> None:
    fails(
        checkout.quickstart(PYTHON=python),
        f"'{python}' cannot make .venv",
        words,
        "Python 3.10 or newer",
        "PYTHON=",
    )


def test_program_that_is_not_python(checkout: Checkout) -> None:
    fails(
        checkout.quickstart(PYTHON="/bin/false"), "'/bin/false' cannot make .venv: it does not run"
    )


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.9"])
def test_python_too_old(checkout: Checkout, version: str) -> None:
    fails(
        checkout.quickstart(FAKE_VERSION=version), f"it is Python {version}", "Python 3.10 or newer"
    )
    assert not checkout.venv.exists()


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_python_new_enough(checkout: Checkout, version: str) -> None:
    assert checkout.quickstart(FAKE_VERSION=version).returncode == 0


def test_python_without_venv(checkout: Checkout) -> None:
    fails(
        checkout.quickstart(FAKE_NO_VENV="1"),
        "import of ensurepip halted",
        "apt-get install python3-venv",
    )
    assert not checkout.venv.exists()


def test_too_little_disk(checkout: Checkout) -> None:
    result = checkout.quickstart(FAKE_FREE_KB=str(2 * 1024 * 1024))
    fails(result, "too little disk: 2 GB free", "7 GB needed")
    assert checkout.take_calls() == []
    assert not checkout.venv.exists()


@pytest.mark.parametrize("free_gb, enough", [(2, True), (0, False)])
def test_an_earlier_venv_counts_as_room_and_a_cache_does_not(
    checkout: Checkout, free_gb: int, enough: bool
) -> None:
    du = checkout.root.parent / "tools" / "du"
    du.write_text(
        f'#!/bin/bash\n[ "$*" = "-sk {checkout.venv}" ] && echo 5242880 || echo 99999999\n'
    )
    du.chmod(0o755)
    result = checkout.quickstart(FAKE_FREE_KB=str(free_gb * 1024 * 1024))
    assert (result.returncode == 0) == enough, result.stderr
    assert ("too little disk" in result.stderr) != enough


# When it installs


def test_first_run_installs_and_launches(checkout: Checkout) -> None:
    result = checkout.quickstart("--config.seed=7", "--config.note=two words")
    assert result.returncode == 0, result.stderr
    assert checkout.take_calls() == [CORE, PACKAGE]
    assert checkout.steps() == [
        "scripts/train.py",
        "--config=config/tp_grpo.py:shapes_tiny",
        "--config.seed=7",
        "--config.note=two words",
        "--config.run_name=quickstart",
    ]
    assert result.stdout.splitlines()[-1] == "runs/quickstart/report.html"


@pytest.mark.parametrize("value, compiles", [("1", True), ("", False)])
def test_bytecode_is_made_where_python_may_not_write_it(
    checkout: Checkout, value: str, compiles: bool
) -> None:
    """Or every start would compile all libraries again."""
    assert checkout.quickstart(PYTHONDONTWRITEBYTECODE=value).returncode == 0
    environment = Path(f"{checkout.calls}.env").read_text().splitlines()
    assert ("UV_COMPILE_BYTECODE=1" in environment) == compiles


@pytest.mark.parametrize("joint", ["=", " "])
def test_given_config_and_run_name_replace_the_defaults(checkout: Checkout, joint: str) -> None:
    given = f"--config{joint}config/flow_grpo.py:shapes_tiny --config.run_name{joint}flow".split()
    checkout.quickstart(*given)
    assert checkout.steps() == ["scripts/train.py", *given]


def test_second_run_installs_nothing(installed: Checkout) -> None:
    assert installed.quickstart().returncode == 0
    assert installed.take_calls() == []
    # Once made, .venv needs no other interpreter.
    assert installed.quickstart(PYTHON="", FAKE_NO_VENV="1").returncode == 0
    assert installed.take_calls() == []


@pytest.mark.parametrize("name", ["requirements.txt", "setup.py"])
def test_changed_requirements_are_installed(installed: Checkout, name: str) -> None:
    with (installed.root / name).open("a") as file:
        file.write("# changed\n")
    is_installed_in_place(installed)


def test_moved_repository_is_installed_again(installed: Checkout) -> None:
    installed.root = installed.root.rename(installed.root.with_name("moved"))
    is_installed_in_place(installed)


def test_venv_of_the_user_is_completed(installed: Checkout) -> None:
    (installed.venv / ".setup").unlink()
    is_installed_in_place(installed)


def test_another_python_makes_venv_anew(installed: Checkout) -> None:
    # The pretended version is one for both interpreters, so the one in .venv is told apart by hand.
    inner = installed.venv / "bin" / "python"
    inner.write_text(inner.read_text().replace("${FAKE_VERSION:-3.12}", "3.11"))
    is_made_anew(installed, "3.11")


def test_broken_venv_is_made_anew(installed: Checkout) -> None:
    (installed.venv / "bin" / "python").unlink()
    is_made_anew(installed, "none that runs")


def test_killed_installation_starts_again(checkout: Checkout) -> None:
    assert checkout.quickstart(FAKE_UV_KILLS="1", FAKE_UV_WRITES="1").returncode == -9
    checkout.take_calls()
    is_made_anew(checkout, "an unfinished installation")
    assert not (checkout.venv / "lib" / "half a package").exists()


def test_killed_change_of_a_complete_venv_starts_again(installed: Checkout) -> None:
    installed.change_requirements()
    assert installed.quickstart(FAKE_UV_KILLS="1").returncode == -9
    installed.take_calls()
    is_made_anew(installed, "an unfinished installation")


def test_second_installation_waits_for_the_first(checkout: Checkout) -> None:
    with checkout.start("quickstart.sh", FAKE_UV_WAITS="1") as first:
        waits = checkout.calls.with_name("calls.waits")
        while not waits.exists():
            assert first.poll() is None
        with checkout.start("quickstart.sh") as second:
            assert second.stdout is not None
            assert "waiting for another installation" in second.stdout.readline()
            for _ in (CORE, PACKAGE):
                while not waits.exists():
                    assert first.poll() is None
                waits.unlink()
            assert second.wait(60) == 0
    assert first.returncode == 0
    assert checkout.take_calls() == [CORE, PACKAGE]


# How it installs


@pytest.mark.parametrize(
    "says", ["error: client error (Connect)", "No space left on device (os error 28)"]
)
def test_failure_of_uv_is_shown_with_a_hint(checkout: Checkout, says: str) -> None:
    result = checkout.quickstart(FAKE_UV_FAILS="2", FAKE_UV_SAYS=says)
    fails(
        result,
        says,
        "uv could not install",
        "run this again",
        "https_proxy",
        "PIP_INDEX_URL",
        "Wheels exist",
    )
    assert checkout.take_calls() == [CORE]


def test_failed_download_keeps_a_good_venv(installed: Checkout) -> None:
    installed.change_requirements()
    fails(installed.quickstart(FAKE_UV_FAILS="1"), "a download failed")
    installed.take_calls()
    is_installed_in_place(installed)


def test_failed_download_is_resumed_without_the_hint_of_a_kill(installed: Checkout) -> None:
    before = (installed.root / "requirements.txt").read_text()
    installed.change_requirements()
    fails(installed.quickstart(FAKE_UV_FAILS="1"))
    installed.take_calls()
    (installed.root / "requirements.txt").write_text(before)
    assert installed.quickstart().returncode == 0
    assert installed.take_calls() == []


def test_failure_after_a_change_makes_venv_anew(installed: Checkout) -> None:
    installed.change_requirements()
    fails(installed.quickstart(FAKE_UV_FAILS="1", FAKE_UV_WRITES="1"))
    installed.take_calls()
    is_made_anew(installed, "an unfinished installation")


@pytest.mark.parametrize("on_path", ["none", "broken"])
def test_uv_comes_from_pip_where_the_machine_has_none(checkout: Checkout, on_path: str) -> None:
    (checkout.root.parent / "tools" / "uv").write_text("#!/bin/bash\nexit 127\n")
    if on_path == "none":
        (checkout.root.parent / "tools" / "uv").unlink()
        checkout.env["PATH"] = f"{checkout.root.parent / 'tools'}:/usr/bin:/bin"
        assert shutil.which("uv", path=checkout.env["PATH"]) is None
    assert checkout.quickstart().returncode == 0
    assert checkout.take_calls() == ["pip uv==0.13.9", CORE, PACKAGE]
    checkout.change_requirements()
    assert checkout.quickstart().returncode == 0
    assert checkout.take_calls() == [CORE, PACKAGE]


def test_uv_downloads_no_interpreter_and_waits_long(checkout: Checkout) -> None:
    checkout.quickstart(VIRTUAL_ENV="/elsewhere", CONDA_PREFIX="/elsewhere")
    assert checkout.uv_env()["UV_PYTHON_DOWNLOADS"] == "never"
    assert checkout.uv_env()["UV_HTTP_TIMEOUT"] == "300"


@pytest.mark.parametrize(
    "env, index",
    [
        ({}, None),
        ({"PIP_INDEX_URL": "pip"}, "pip"),
        ({"FAKE_PIP_CONFIG": "file"}, "file"),
        ({"PIP_INDEX_URL": "pip", "FAKE_PIP_CONFIG": "file"}, "pip"),
        ({"PIP_INDEX_URL": "pip", "UV_INDEX_URL": "uv"}, "uv"),
        ({"PIP_INDEX_URL": "pip", "UV_DEFAULT_INDEX": "uv"}, "uv"),
    ],
)
def test_mirror_of_pip_is_uvs_too(
    checkout: Checkout, env: dict[str, str], index: str | None
) -> None:
    assert checkout.quickstart(**env).returncode == 0
    assert checkout.uv_env().get("UV_DEFAULT_INDEX") == index
    assert checkout.uv_env().get("PIP_INDEX_URL") == index


def test_cache_that_uv_can_link_from_is_used(checkout: Checkout) -> None:
    checkout.quickstart()
    assert "UV_CACHE_DIR" not in checkout.uv_env()
    assert list((checkout.root.parent / "cache").iterdir()) == []


def test_cache_is_in_venv_where_uv_cannot_link_from_its_own(checkout: Checkout) -> None:
    checkout.quickstart(FAKE_CACHE="/dev/null/cache")
    assert checkout.uv_env()["UV_CACHE_DIR"] == str(checkout.venv / ".cache")
    checkout.change_requirements()
    checkout.quickstart(FAKE_CACHE="/dev/null/cache", UV_CACHE_DIR="/of/the/user")
    assert checkout.uv_env()["UV_CACHE_DIR"] == "/of/the/user"


def test_cache_in_venv_survives_a_new_venv(checkout: Checkout) -> None:
    (checkout.venv / ".cache").mkdir(parents=True)
    (checkout.venv / ".cache" / "torch").touch()
    assert checkout.quickstart().returncode == 0
    assert (checkout.venv / ".cache" / "torch").exists()


# The scripts themselves


def test_failed_training_fails_the_script(checkout: Checkout) -> None:
    checkout.python.write_text(FAKE_PYTHON.replace('echo "runs/quickstart/report.html"', "exit 3"))
    assert checkout.quickstart().returncode == 3


def test_test_script_adds_its_tools_and_runs_every_step(checkout: Checkout) -> None:
    result = checkout.run("test.sh", "tests/method", "-n", "0", OMP_NUM_THREADS="64")
    assert result.returncode == 0, result.stderr
    assert checkout.take_calls() == [DEV, PACKAGE]
    assert [step.split()[:2] for step in checkout.steps()] == [
        ["-m", "ruff"],
        ["-m", "ruff"],
        ["-m", "mypy"],
        [".venv/bin/lint-imports"],
        ["-m", "pytest"],
    ]
    assert checkout.steps()[-1].endswith(" tests/method -n 0")
    # They are a superset of the quick start's.
    assert checkout.quickstart().returncode == 0
    assert checkout.take_calls() == []


def test_test_script_completes_the_venv_of_the_quick_start(installed: Checkout) -> None:
    assert installed.run("test.sh").returncode == 0
    assert installed.take_calls() == [DEV, PACKAGE]
    assert (installed.venv / "kept").exists()


def test_test_script_stops_at_the_first_step_that_fails(checkout: Checkout) -> None:
    checkout.python.write_text(
        FAKE_PYTHON.replace('"-m ruff "*', '"-m mypy "*) exit 5 ;; "-m ruff "*')
    )
    assert checkout.run("test.sh").returncode == 5
    assert len(checkout.steps()) == 2


@pytest.mark.parametrize(
    "script", ["quickstart.sh", "test.sh", "single_node/tp_grpo.sh", "multi_node/flow_grpo.sh"]
)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_the_first_comment(checkout: Checkout, script: str, option: str) -> None:
    result = checkout.run(script, "--config.seed=7", option)
    assert result.returncode == 0
    assert f"bash scripts/{script}" in result.stdout
    assert "#" not in result.stdout
    assert not checkout.venv.exists()
