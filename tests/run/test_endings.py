"""Endings: the exit code of every error, what is printed, and by whom."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from tp_grpo.observe.alarms import Alarmed
from tp_grpo.ranks import peers
from tp_grpo.ranks.agreement import DisagreementError
from tp_grpo.ranks.preemption import Preempted
from tp_grpo.rewards.reward_set import RewardError
from tp_grpo.run import endings
from tp_grpo.store.files import NoRoomError
from tp_grpo.train.update import GradientError, RatioError


class Run:
    """A run that notes what is closed."""

    def __init__(self, rank: int = 0) -> None:
        self.closed: list[str] = []
        self.runtime: Any = SimpleNamespace(
            is_main=rank == 0, leave=lambda: self.closed.append("group"), say=print
        )
        self.rewards: Any = SimpleNamespace(close=lambda: self.closed.append("scorers"))
        self.run_folder: Any = SimpleNamespace(how_to_resume=lambda: "epoch 3 is safe")


FULL = OSError(errno.ENOSPC, "the disk is full: 5 were free")


@pytest.mark.parametrize(
    "error, code, words",
    [
        (Preempted("SIGTERM: stopped at once"), 0, "stopped by SIGTERM: stopped at once"),
        (RewardError("no score"), 3, "error: no score"),
        (RatioError("not 1"), 3, "error: not 1"),
        (GradientError("NaN {}"), 3, "error: NaN {}"),
        (DisagreementError("rank 1"), 3, "error: rank 1"),
        (FULL, 4, "error: the disk is full: 5 were free; make room"),
        (NoRoomError(*FULL.args), 4, "error: the disk is full: 5 were free; make room"),
        (Alarmed([], "alarm after epoch 5"), 5, "alarm after epoch 5"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_every_ending_has_its_code_and_words_and_says_how_to_resume(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    ending = endings.of(error, run)
    assert ending is not None
    ending.close(run)
    assert ending.code == code
    assert capsys.readouterr() == ("", f"\n{words}\nepoch 3 is safe\n")
    assert run.closed[0] == "scorers"


@pytest.mark.parametrize("error", [Preempted("SIGTERM"), Alarmed([], "alarm")])
def test_what_ends_all_ranks_together_is_printed_by_rank_0_and_the_group_is_left(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(rank=1)
    ending = endings.of(error, run)
    assert ending is not None
    ending.close(run)
    assert capsys.readouterr() == ("", "")
    assert run.closed == ["scorers", "group"]


def test_what_one_rank_may_meet_alone_is_printed_by_it_and_the_group_is_not_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(rank=1)
    endings.FullDisk("no room").close(run)
    assert "error: no room; make room" in capsys.readouterr().err
    assert run.closed == ["scorers"]


def test_a_value_error_is_the_users_while_the_run_is_built_and_a_bug_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ending = endings.of(ValueError("no such field"), None)
    assert ending is not None and ending.code == 2
    ending.close(None)
    assert capsys.readouterr().err == "\nerror: no such field\n"
    assert endings.of(ValueError("no such field"), Run()) is None


def test_a_lost_rank_is_named_and_other_errors_are_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"gloo": "rank 1 no longer answers"}
    monkeypatch.setattr(peers, "explain", lambda error: gone.get(str(error)))
    lost = endings.of(RuntimeError("gloo"), Run())
    assert lost is not None and (lost.code, str(lost)) == (4, "error: rank 1 no longer answers")
    for bug in (RuntimeError("a bug"), OSError(errno.EIO, "gone"), TypeError("a bug")):
        assert endings.of(bug, Run()) is None


def test_a_run_that_is_done_names_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    done = endings.Done("runs/a/report.html")
    done.close(Run())
    assert done.code == 0 and capsys.readouterr() == ("report: runs/a/report.html\n", "")
