"""Every way a run ends: its exit code, its words, and which ranks print them."""

from __future__ import annotations

import errno
import sys
from typing import Protocol

from tp_grpo.observe.alarms import Alarmed
from tp_grpo.ranks import peers
from tp_grpo.ranks.preemption import Preempted
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardSet
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.store import files
from tp_grpo.types import MustStop


class Run(Protocol):
    """What an ending closes of a `Trainer`."""

    runtime: Runtime
    rewards: RewardSet
    run_folder: RunFolder


class Ending:
    """`words` with the reason; `together`: all ranks end for the same one, only rank 0 prints."""

    code: int
    words = "error: {}"
    together = False

    def __init__(self, reason: object = "") -> None:
        self.reason = reason

    def __str__(self) -> str:
        return self.words.format(self.reason)

    def close(self, run: Run | None) -> None:
        """Cancel scoring without waiting; print why the run ends and how to resume it.

        run: None where it was never built.
        """
        if run is None:
            print(f"\n{self}", file=sys.stderr)
            return
        run.rewards.close()
        if run.runtime.is_main or not self.together:
            print(f"\n{self}\n{run.run_folder.how_to_resume()}", file=sys.stderr)
        if self.together:
            run.runtime.leave()


class Done(Ending):
    """The report is written; its path is the reason."""

    code, words = 0, "report: {}"

    def close(self, run: Run | None) -> None:
        if run is not None:
            run.runtime.say(str(self))


class StoppedBySignal(Ending):
    """A scheduler asked, and all ranks stopped where they can resume."""

    code, words, together = 0, "stopped by {}", True


class WrongSetting(Ending):
    """The user's mistake, found before training."""

    code = 2


class Untrainable(Ending):
    """Scores, ratios, gradients or ranks that must not be trained on."""

    code = 3


class LostRank(Ending):
    """Another rank is gone."""

    code = 4


class FullDisk(Ending):
    """The disk is full."""

    code, words = 4, "error: {}; make room"


class LostFile(Ending):
    """A file that can no longer be read or written."""

    code = 4


class StoppedByAlarm(Ending):
    """An alarm stood, and `tracking.alarms` is stop or rollback."""

    code, words, together = 5, "{}", True


class CtrlC(Ending):
    """The user pressed Ctrl-C."""

    code, words = 130, "stopped by Ctrl-C"


def of(error: BaseException, run: Run | None) -> Ending | None:
    """The ending that an error means; None for a bug, which keeps its traceback.

    run: None while it is being built, which is when a ValueError is the user's mistake.
    """
    if isinstance(error, KeyboardInterrupt):
        return CtrlC()
    if isinstance(error, Preempted):
        return StoppedBySignal(error)
    if isinstance(error, Alarmed):
        return StoppedByAlarm(error)
    if isinstance(error, MustStop):
        return Untrainable(error)
    if isinstance(error, ValueError) and run is None:
        return WrongSetting(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FullDisk(error.strerror)
    if isinstance(error, OSError) and error.filename:
        return (WrongSetting if run is None else LostFile)(files.in_words(error))
    if isinstance(error, RuntimeError) and (lost := peers.explain(error)):
        return LostRank(lost)
    return None
