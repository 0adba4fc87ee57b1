"""SIGTERM, SIGUSR1 and Ctrl-C: where a run stops, what it prints, and that it resumes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults import runs
from tp_grpo.ranks import preemption
from tp_grpo.ranks.preemption import Preempted, Preemption
from tp_grpo.store.checkpoint import Checkpoints, load
from tp_grpo.store.files import read_lines


def epochs(folder: Path) -> list[int]:
    return Checkpoints(folder / "checkpoints", 100).epochs()


def logged(folder: Path, kind: str) -> list[int]:
    return [line["epoch"] for line in read_lines(folder / "metrics.jsonl") if line["kind"] == kind]


def test_without_grace_sigterm_stops_at_the_next_batch_with_code_0(
    tmp_path: Path, undisturbed: Path
) -> None:
    (process,) = runs.start(
        tmp_path, "run", {"checkpoint.grace": 0}, at=("sample", 3)
    )  # two an epoch
    assert process.reached()
    os.kill(process.pid, signal.SIGTERM)
    code, output = process.wait()
    assert code == 0, output
    assert "stopped by SIGTERM: stopped at once" in output
    saved = f"everything up to epoch 1 is in {tmp_path}/run"
    assert f"{saved}; the same command resumes from there." in output
    assert epochs(tmp_path / "run") == [1]
    assert logged(tmp_path / "run", "train") == [1]
    runs.finish(tmp_path, "run")
    runs.assert_same_weights(tmp_path / "run", undisturbed)


def test_a_signal_while_it_loads_is_answered_at_the_first_batch(tmp_path: Path) -> None:
    (process,) = runs.start(tmp_path, "run", at=("load", 1))
    assert process.reached()
    os.kill(process.pid, signal.SIGUSR1)
    code, output = process.wait()
    assert code == 0, output
    assert "stopped by SIGUSR1" in output
    assert "no epoch was finished yet" in output


@pytest.mark.parametrize(
    "at, saved", [(("write", 2), 2), (("update", 3), 1)], ids=["write", "update"]
)
def test_ctrl_c_finishes_the_checkpoint_and_the_same_command_resumes(
    at: tuple[str, int], saved: int, tmp_path: Path, undisturbed: Path
) -> None:
    """While a checkpoint is written, and in the middle of the second epoch."""
    (process,) = runs.start(tmp_path, "run", at=at)
    assert process.reached()
    os.kill(process.pid, signal.SIGINT)
    code, output = process.wait()
    assert code == 130, output
    assert "stopped by Ctrl-C" in output
    assert (
        f"everything up to epoch {saved} is in {tmp_path}/run; the same command resumes" in output
    )
    assert "Traceback" not in output
    output = runs.finish(tmp_path, "run")
    assert f"resuming from epoch {saved}" in output
    assert output.rstrip().endswith("run/report.html")
    runs.assert_same_weights(tmp_path / "run", undisturbed)


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_runs(
    tmp_path: Path, undisturbed: Path
) -> None:
    (first,) = runs.start(tmp_path, "run", at=("sample", 1))
    assert first.reached()
    (second,) = runs.start(tmp_path, "run")
    code, output = second.wait()
    assert code == 2, output
    assert f"run is in use by process {first.pid} on " in output
    assert "another run_name" in output
    assert first.wait()[0] == 0
    runs.assert_same_weights(tmp_path / "run", undisturbed)
    runs.finish(tmp_path, "run")  # it is free again


def test_an_evaluation_that_is_stopped_costs_itself_and_is_made_up_for(tmp_path: Path) -> None:
    fields = {"checkpoint.grace": 0, "eval.every": 2, "eval.batch_size": 1}
    (process,) = runs.start(
        tmp_path, "run", fields, at=("evaluate", 3)
    )  # two images, and two after epoch 2
    assert process.reached()
    os.kill(process.pid, signal.SIGTERM)
    code, output = process.wait()
    assert code == 0, output
    assert "stopped at once" in output
    folder = tmp_path / "run"
    assert epochs(folder) == [1, 2], "the trained epoch is kept"
    assert logged(folder, "eval") == [0]
    runs.finish(tmp_path, "run", fields)
    assert logged(folder, "eval") == [0, 2, 3]
    assert logged(folder, "train") == [1, 2, 3]
    assert "total" in load(folder / "checkpoints/epoch-2").scores


@pytest.mark.parametrize(
    "number, rank, grace, words, kept",
    [
        (signal.SIGUSR1, 1, 600, "stopped by SIGUSR1: stopped after the epoch", [1, 2]),
        (signal.SIGTERM, 0, 0, "stopped by SIGTERM: stopped at once", [1]),
    ],
)
def test_a_signal_to_any_rank_stops_both_at_one_point_and_nothing_is_lost(
    number: signal.Signals,
    rank: int,
    grace: float,
    words: str,
    kept: list[int],
    tmp_path: Path,
    undisturbed_pair: Path,
) -> None:
    fields = {**runs.PAIR, "checkpoint.grace": grace}
    timed = {0: "tests.faults.spoil.waiting_for_writes"}  # else it would not trust the grace
    at = ("update", 3)  # in epoch 2
    processes = runs.start(tmp_path, "run", fields, at=at, ranks=2, spoil=timed)
    assert all(process.reached() for process in processes)
    os.kill(processes[rank].pid, number)
    (code, output), (other_code, silence) = [process.wait() for process in processes]
    assert (code, other_code) == (0, 0), output
    assert words in output
    assert "the same command resumes from there" in output
    assert words not in silence, "one rank says it for all"
    assert epochs(tmp_path / "run") == kept
    shutil.copytree(tmp_path / "run", tmp_path / "alone", symlinks=True)
    runs.finish(tmp_path, "run", fields, ranks=2)
    runs.assert_same_weights(tmp_path / "run", undisturbed_pair)
    runs.finish(
        tmp_path, "alone", {**fields, "sample.batch_size": 2}
    )  # on one rank, and with other batches
    for folder in (tmp_path / "run", tmp_path / "alone"):
        assert logged(folder, "train") == [1, 2, 3]
        assert logged(folder, "eval") == [0, 3]


def _hang(pressed: str) -> None:
    """In C, where Python's handlers do not run; the lock of the interpreter is free."""
    preemption.stop_on_second_ctrl_c("twice")
    Path(pressed).touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)


def test_a_second_ctrl_c_stops_a_process_that_hangs_in_c(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = runs.fork(_hang, str(ready))
    while not ready.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.3)
    assert process.exitcode is None, "the first waits for Python"
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130


class Alone:
    """A runtime whose other ranks, if any, report these values."""

    def __init__(self, others: tuple[float, ...] = (0, 0, 0), is_main: bool = True) -> None:
        self.others, self.is_main = others, is_main

    def all_max(self, values: list[float]) -> list[float]:
        return [max(pair) for pair in zip(values, self.others, strict=False)]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "grace, evaluates, stops",
    [(8, False, False), (6, False, True), (8, True, True), (18, True, False)],
)
def test_the_epoch_is_finished_when_the_grace_allows(
    grace: float, evaluates: bool, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs take 8 s, evaluations 10, checkpoints 2: after 3 s an epoch needs 7 or 17 s more."""
    clock = Clock()
    monkeypatch.setattr(preemption, "time", clock)
    preempted = Preemption(Alone(), grace)  # type: ignore[arg-type]
    with preempted.epoch(evaluates=True):
        clock.now += 7
        with preempted.timed("evaluation"):
            clock.now += 10
        clock.now += 1
    with preempted.timed("write"):
        clock.now += 2
    preempted.between_epochs()
    with (
        pytest.raises(Preempted, match="SIGTERM"),
        preempted.watching(),
        preempted.epoch(evaluates=evaluates),
    ):
        clock.now += 3
        preempted.boundary()
        signal.raise_signal(signal.SIGTERM)
        if stops:
            preempted.boundary()
            pytest.fail("it continued")
        preempted.boundary()
        clock.now += grace + 1
        preempted.boundary()
        pytest.fail("it continued after the grace was over")


def test_until_the_first_checkpoint_is_on_the_disk_its_seconds_are_unknown() -> None:
    preempted = Preemption(Alone(), 1e9)  # type: ignore[arg-type]
    with preempted.watching(), preempted.epoch(evaluates=False):
        pass
    with preempted.watching():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted, match="stopped at once"), preempted.timed("write"):
            preempted.boundary()
        with preempted.timed("write"):
            preempted.boundary()


@pytest.mark.parametrize("left, stops", [(5, False), (9, True)])
def test_a_rank_counts_the_seconds_that_the_writing_rank_needs(left: float, stops: bool) -> None:
    preempted = Preemption(Alone((0, 0, left), is_main=False), 8)  # type: ignore[arg-type]
    with preempted.watching(), preempted.epoch(evaluates=False):
        pass
    with preempted.watching():
        signal.raise_signal(signal.SIGTERM)
        if stops:
            with pytest.raises(Preempted, match="stopped at once"):
                preempted.boundary()
        else:
            preempted.boundary()


def test_before_an_epoch_was_timed_it_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    preempted = Preemption(Alone(), 1e9)  # type: ignore[arg-type]
    before = signal.getsignal(signal.SIGUSR1)
    with preempted.watching(), pytest.raises(Preempted, match="SIGUSR1: stopped at once"):
        signal.raise_signal(signal.SIGUSR1)
        list(preempted.between([1]))
    assert signal.getsignal(signal.SIGUSR1) == before
