"""kill -9 at any moment, a full disk: the run resumes and ends with an unhurt one's weights."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import runs
from tp_grpo.store.checkpoint import STATE, WEIGHTS, Checkpoint, Checkpoints, load
from tp_grpo.store.files import NoRoomError, read_lines

WIDTH = {
    "sample": 0.15,
    "score": 0.02,
    "update": 0.1,
    "evaluate": 0.1,
    "write": 0.25,
    "rename": 0.1,
}  # seconds


def assert_same(hurt: Path, whole: Path) -> None:
    """Weights, and what was logged; seconds differ."""
    runs.assert_same_weights(hurt, whole)
    ours, theirs = (
        [_told(line) for line in read_lines(run / "metrics.jsonl")] for run in (hurt, whole)
    )
    assert ours == theirs
    assert (hurt / "report.html").is_file()
    assert len(list(hurt.glob("evaluations/*.safetensors"))) == 2


def _told(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith("seconds")}


def test_killed_at_random_moments_it_ends_bit_for_bit_as_if_left_alone(
    tmp_path: Path, undisturbed: Path, kills: int, moments: int
) -> None:
    print(f"the moments: --moments={moments}")
    draw = random.Random(moments)
    left, number = kills, 0
    while left:
        number += 1
        name = f"hurt-{number}"
        while left and _killed(tmp_path, name, draw, phase=list(WIDTH)[left % len(WIDTH)]):
            left -= 1
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # "damaged; trying the one before it"
                Checkpoints(tmp_path / name / "checkpoints", 100).newest()
        if not (tmp_path / name / "report.html").is_file():
            runs.finish(tmp_path, name)
        assert_same(tmp_path / name, undisturbed)


def _killed(folder: Path, name: str, draw: random.Random, *, phase: str) -> bool:
    """Start or resume, and kill at random after the phase begins; False if the run ended before."""
    (process,) = runs.start(
        folder, name, at=(phase, draw.randint(1, 3 if phase in ("sample", "update") else 2))
    )
    wait = draw.uniform(0, WIDTH[phase])
    if not process.reached():
        code, output = process.wait()
        assert code == 0, output
        return False
    time.sleep(wait)
    process.process.kill()
    code, output = process.wait()
    assert code in (0, -9), output
    return code == -9


def test_a_rank_killed_beside_another_stops_both_and_loses_nothing(
    tmp_path: Path, undisturbed_pair: Path, moments: int
) -> None:
    """Also while rank 0 writes; the one that is left names the one that is gone."""
    print(f"the moments: --moments={moments}")
    draw = random.Random(moments)
    for phase, lost in (("update", 1), ("write", 1), ("write", 0)):
        processes = runs.start(tmp_path, "run", runs.PAIR, at=(phase, 1), ranks=2)
        assert processes[0].reached()
        time.sleep(draw.uniform(0, WIDTH[phase]))
        processes[lost].process.kill()
        code, output = processes[1 - lost].wait()
        assert code == 4, output
        assert f"rank {lost} on machine 0" in output
    runs.finish(tmp_path, "run", runs.PAIR, ranks=2)
    runs.assert_same_weights(tmp_path / "run", undisturbed_pair)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """16 MB; a checkpoint of the run takes 3."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs can only be mounted by root, outside of most containers")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - leave))
    return filler


def test_a_full_disk_stops_the_run_with_the_numbers_and_loses_nothing(
    small_disk: Path, undisturbed: Path
) -> None:
    runs.finish(small_disk, "run", {"epochs": 1})
    filler = fill(small_disk, leave=1 << 20)
    (process,) = runs.start(small_disk, "run")
    code, output = process.wait()
    assert code == 4, output
    assert "Traceback" not in output, output
    assert re.search("error: the disk is full: about 3,1.* were free for .*; make room", output)
    assert "everything up to epoch 1 is in" in output
    assert load(small_disk / "run/checkpoints/epoch-1").epoch == 1
    assert [
        path.name
        for path in (small_disk / "run/checkpoints").iterdir()
        if path.name.startswith(".")
    ] == []
    filler.unlink()
    runs.finish(small_disk, "run")
    runs.assert_same_weights(small_disk / "run", undisturbed)


@pytest.mark.parametrize("full", [WEIGHTS, STATE, "adapter"])
def test_a_disk_that_fills_up_while_a_file_is_written(
    small_disk: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints", 10)
    tensor = torch.zeros(1 << 18)  # 1 MB

    def export(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(3 << 20))

    def save(epoch: int) -> None:
        checkpoints.save(Checkpoint(epoch, {"a": tensor}, {"b": tensor}, {}), export)

    save(1)
    fill(small_disk, leave={WEIGHTS: 1 << 19, STATE: 3 << 19, "adapter": 3 << 20}[full])
    # As if the disk had room when writing began, and another process filled it.
    disk_usage, asked = shutil.disk_usage, []

    def usage(path: Path) -> Any:
        asked.append(path)
        return disk_usage(path)._replace(free=5 << 20) if len(asked) == 1 else disk_usage(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(
        NoRoomError, match=r"the disk is full: about 5,2.* were needed .*were free for .*epoch-2"
    ):
        save(2)
    assert checkpoints.epochs() == [1]
    assert load(small_disk / "checkpoints" / "epoch-1").epoch == 1
    assert not list((small_disk / "checkpoints").glob(".*"))
