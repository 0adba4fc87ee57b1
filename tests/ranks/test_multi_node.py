"""scripts/multi_node/tp_grpo.sh on two network namespaces that are joined by a cable, over gloo."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/multi_node/tp_grpo.sh"
FIELDS = {"epochs": 3, "eval.every": 3, "runtime.timeout_s": 30, "train.beta": 1e-3}
pytestmark = pytest.mark.slow


class Machines:
    """Two namespaces, 10.77.0.1 and 10.77.0.2, that know no other names or machines."""

    def __init__(self) -> None:
        self.names = [f"tpgrpo-{os.getpid()}-{rank}" for rank in range(2)]

    def join(self) -> None:
        clear_left_over()
        for name in self.names:
            ip("netns", "add", name)
            etc = (
                Path("/etc/netns") / name
            )  # `ip netns exec` lays it over /etc; a look-up would wait for a server
            etc.mkdir(parents=True)
            (etc / "nsswitch.conf").write_text("hosts: files\n")
            (etc / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n")
        ip(
            "link",
            "add",
            "cable",
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            "cable",
            "netns",
            self.names[1],
        )
        for number, name in enumerate(self.names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")

    def part(self) -> None:
        for rank, name in enumerate(self.names):
            self.kill(rank)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def start(
        self,
        rank: int,
        out: Path,
        run_name: str = "two",
        changed: Mapping[str, object] = FIELDS,
        **env: str,
    ) -> subprocess.Popen[str]:
        """The documented command on one of them, with the fields changed."""
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.names[rank],
                "bash",
                SCRIPT,
                str(rank),
                *fields(out, run_name, changed),
            ],
            cwd=ROOT,
            env=environment(
                MASTER_ADDR="10.77.0.1", NUM_MACHINES="2", NUM_PROCESSES="2", MASTER_WAIT="60"
            )
            | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def unplug(self) -> None:
        """The cable, at machine 1: nobody is told."""
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def kill(self, rank: int) -> None:
        """The machine's power fails: the launcher and all that it started, at once."""
        running = subprocess.run(
            ["ip", "netns", "pids", self.names[rank]], capture_output=True, text=True
        ).stdout
        for pid in running.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def clear_left_over() -> None:
    """Remove what killed tests have left: namespaces and folders named after a dead process."""
    listed = {line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()}
    folders = {path.name for path in Path("/etc/netns").glob("tpgrpo-*")}
    for name in listed | folders:
        made_by = re.fullmatch(r"tpgrpo-(\d+)-\d", name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            if name in listed:
                ip("netns", "delete", name)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def fields(out: Path, run_name: str, changed: Mapping[str, object] = FIELDS) -> list[str]:
    chosen = {**FIELDS, **changed, "output_dir": out, "run_name": run_name}
    return [f"--config.{field}={value}" for field, value in chosen.items()]


def environment(**settings: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    embedded = {"MODEL_NAME": "shapes", "REWARD": "smoke", "LAUNCH": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PATH": path, **embedded, **settings}


@pytest.fixture
def machines() -> Iterator[Machines]:
    if shutil.which("ip") is None:
        pytest.skip(
            "no network namespaces: there is no `ip` (Debian, Ubuntu: apt-get install iproute2)"
        )
    pair = Machines()
    try:
        pair.join()
    except (OSError, subprocess.CalledProcessError) as error:
        pair.part()
        pytest.skip(f"no network namespaces: {getattr(error, 'stderr', '') or error}")
    yield pair
    pair.part()


def weights(folder: Path) -> dict:
    return load_file(folder / "checkpoints/epoch-3/trainable.safetensors")


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 2 * 150
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_two_machines_one_of_them_late_and_lost_give_what_one_gives(
    machines: Machines, tmp_path: Path
) -> None:
    # The first is late: the second says what it waits for, and goes on when it comes.
    second = machines.start(1, tmp_path)
    time.sleep(2)
    first = machines.start(0, tmp_path)
    # The second is lost in mid-epoch, after the first epoch is on disk.
    wait_for(tmp_path / "two/checkpoints/epoch-1/state.json", first)
    machines.kill(1)
    killed = time.monotonic()
    assert "waiting for RANK 0 at 10.77.0.1:19001 for up to 60 s" in second.communicate()[0]
    code, output = finish(first, 120)
    assert code != 0 and "error: rank 1 on machine 1" in output and "no longer answers" in output, (
        output
    )
    assert "everything up to epoch 1 is in" in output and time.monotonic() - killed < 60, output

    first, second = (machines.start(rank, tmp_path) for rank in range(2))
    code, output = finish(first)
    assert code == 0 and "resuming from epoch 1" in output, output
    assert "two/report.html" in output and finish(second)[0] == 0, output

    single = subprocess.run(
        ["bash", "scripts/single_node/tp_grpo.sh", *fields(tmp_path, "one")],
        cwd=ROOT,
        env=environment(NUM_GPUS="1"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert single.returncode == 0, single.stdout + single.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    distance = sum((one[name] - two[name]).square().sum() for name in one) ** 0.5
    assert distance / sum(value.square().sum() for value in one.values()) ** 0.5 < 1e-3


def begin(machines: Machines, out: Path, **changed: object) -> list[subprocess.Popen[str]]:
    """Both machines, in a run that goes on until it is hurt; after the first epoch is on disk."""
    both = [machines.start(rank, out, "hurt", {"epochs": 1000, **changed}) for rank in range(2)]
    wait_for(out / "hurt/checkpoints/epoch-1/state.json", both[0])
    return both


def test_the_loss_of_machine_0_which_holds_the_store_is_named(
    machines: Machines, tmp_path: Path
) -> None:
    first, second = begin(machines, tmp_path)
    machines.kill(0)
    killed = time.monotonic()
    first.communicate()
    code, output = finish(second, 60)
    assert code != 0 and "rank 0 on machine 0" in output and "everything up to epoch " in output, (
        output
    )
    assert time.monotonic() - killed < 60


def test_a_cable_that_is_pulled_out_stops_both_machines_within_the_timeout(
    machines: Machines, tmp_path: Path
) -> None:
    first, second = begin(machines, tmp_path, **{"runtime.timeout_s": 15})
    machines.unplug()
    pulled = time.monotonic()
    code, output = finish(first, 90)
    assert (
        code != 0
        and "warning: rank 1 on machine 1" in output
        and "error: rank 1 on machine 1" in output
    ), output
    code, output = finish(second, 90)
    assert code != 0 and "error: the store of machine 0 does not answer" in output, output
    assert "everything up to epoch " in output and time.monotonic() - pulled < 90, output


def test_what_a_killed_test_left_behind_is_removed(machines: Machines) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path("/etc/netns") / f"tpgrpo-{gone.pid}-0"
    left.mkdir()
    ip("netns", "add", left.name)
    clear_left_over()
    assert not left.exists() and left.name not in ip("netns", "list")
    assert all(name in ip("netns", "list") for name in machines.names)


@pytest.mark.parametrize(
    ("rank", "address", "words"),
    [
        (
            1,
            "10.77.0.9",
            "nothing answered at MASTER_ADDR = '10.77.0.9', MASTER_PORT = 19001 in 3 s",
        ),
        (
            1,
            "10.77.0.1",
            "(Connection refused): is it the address of RANK 0, is the script running there",
        ),
        (1, "frist", "MASTER_ADDR = 'frist' is no address and no name known here"),
        (
            0,
            "10.77.0.2",
            "RANK 0, cannot listen there; its own are 127.0.0.1, 10.77.0.1, and a floating or NAT",
        ),
    ],
)
def test_a_wrong_master_address_is_an_error_in_bounded_time(
    machines: Machines, rank: int, address: str, words: str, tmp_path: Path
) -> None:
    code, output = finish(machines.start(rank, tmp_path, MASTER_ADDR=address, MASTER_WAIT="3"), 30)
    assert code == 2 and words in output and "Traceback" not in output, output
