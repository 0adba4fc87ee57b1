"""What a run says: two lines an epoch, plain lines without a terminal, two bars on one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tp_grpo.ranks import progress

ROOT = Path(__file__).resolve().parents[2]
VALUES = {
    "reward": 0.5371,
    "turning_0": 0.2,
    "turning_1": 0.1,
    "kl": 0.0,
    "clip_high": 0.07,
    "clip_low": 0.09,
    "ratio_dev": 0.0,
    "seconds": 12.0,
    "seconds_rollout": 8.25,
    "seconds_decode": 1.0,
    "seconds_score_wait": 0.25,
    "seconds_update": 2.5,
}


def test_the_summary_of_an_epoch_is_two_lines() -> None:
    first, second = progress.summary(10, 70, VALUES, images=96).splitlines()
    assert first == "epoch 10/70  reward 0.537  turning 15%  clipped 16%  ratio_dev 0.0e+00"
    # 96 images in 12 s; 60 epochs of 12 s are left
    assert (
        second
        == "             12.0 s (sample 8.2, decode 1.0, score wait 0.2, update 2.5)  8 images/s  left 12 min"
    )
    assert "kl 0.012" in progress.summary(10, 70, VALUES | {"kl": 0.0123}, images=96)


def test_an_evaluation_is_a_line() -> None:
    scores = {"total": 0.5, "total_se": 0.01, "shapes/exact": 0.25, "shapes/exact_se": 0.02}
    assert (
        progress.evaluation(20, scores)
        == "held-out after epoch 20: total 0.500 ± 0.010  exact 0.250 ± 0.020"
    )


@pytest.mark.parametrize("seconds, text", [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_without_a_terminal_a_long_phase_says_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("tp_grpo.ranks.progress.time.monotonic", lambda: now[0])
    seen = []
    for item in progress.bar(range(6), "sample", unit="images", each=8):
        seen.append(item)
        now[0] += 25.0  # 8 images in 25 s
    out, err = capsys.readouterr()
    assert seen == list(range(6)) and err == ""
    assert out.splitlines() == ["sample: 24/48 images, 0.32 a second, 75 s left"], (
        "75 s were over, and then 125 < 75 + 60"
    )


def test_short_phases_epochs_and_other_ranks_say_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bars = (progress.bar(range(3), "a"), progress.epochs(2, 5), progress.silent(range(3)))
    assert [list(bar) for bar in bars] == [[0, 1, 2], [2, 3, 4], [0, 1, 2]]
    bars[1].set_postfix_str("reward 1")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_for_the_epochs_and_one_for_the_phase() -> None:
    program = """
from tp_grpo.ranks import progress
epochs = progress.epochs(3, 5)
for epoch in epochs:
    for batch in progress.bar(range(2), "sample", unit="images", each=8):
        progress.say(f"line {epoch} {batch}")
    epochs.set_postfix_str("reward 0.537")
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(
        ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0)
    )  # 40 rows, 100 columns
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 0, shown
    text = shown.decode()
    for part in (
        "run:",
        "/5",
        "sample:",
        "/16",
        "images/s",
        "reward 0.537",
        "line 3 0",
        "line 4 1",
    ):
        assert part in text, text
