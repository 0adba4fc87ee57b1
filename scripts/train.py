"""Train a text-to-image model by reinforcement learning, as a recipe says.

    python scripts/train.py --config=config/tp_grpo.py:shapes_tiny
    python scripts/train.py --config=config/flow_grpo.py:shapes_tiny --config.run_name=mine --config.epochs=20
    accelerate launch --num_processes 8 scripts/train.py --config=config/tp_grpo.py:pickscore_sd3

What comes of it is in runs/RUN_NAME. The same command goes on where it was stopped. SIGTERM or SIGUSR1 stops at a
checkpoint, with code 0; Ctrl-C stops once a checkpoint in work is on the disk, and a second one waits for nothing.

Exit codes: 0 done, or stopped as a scheduler asked; 2 a mistake in the command; 3 scores, ratios, gradients or ranks
that must not be trained on; 4 a lost rank or a full disk; 5 an alarm (tracking.alarms); 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import sys

from _config import CONFIG, parse, quiet
from absl import app


def main(_: list[str]) -> int:
    from tp_grpo.observe.alarms import Alarmed
    from tp_grpo.ranks import peers
    from tp_grpo.ranks.agreement import DisagreementError
    from tp_grpo.ranks.preemption import Preempted, stop_on_second_ctrl_c
    from tp_grpo.rewards.reward_set import RewardError
    from tp_grpo.train.update import GradientError, RatioError
    from tp_grpo.trainer import Trainer

    quiet()
    stop_on_second_ctrl_c("stopped by a second Ctrl-C; the checkpoints are whole")
    trainer = None
    try:
        try:
            trainer = Trainer(CONFIG.value)
        except (
            ValueError
        ) as error:  # the user's; one that comes later is ours, and keeps its traceback
            return _stopped(None, f"error: {error}", 2)
        page = trainer.run()
    except KeyboardInterrupt:
        return _stopped(trainer, "stopped by Ctrl-C", 130)
    except Preempted as why:
        code = _stopped(trainer, f"stopped by {why}", 0, agreed=True)
        if trainer is not None:
            trainer.runtime.leave()
        return code
    except Alarmed as why:
        code = _stopped(trainer, str(why), 5, agreed=True)
        if trainer is not None:
            trainer.runtime.leave()
        return code
    except (RewardError, RatioError, GradientError, DisagreementError) as error:
        return _stopped(trainer, f"error: {error}", 3)
    except RuntimeError as error:
        lost = peers.explain(error)
        if lost is None:
            raise
        return _stopped(trainer, f"error: {lost}", 4)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _stopped(trainer, f"error: {error.strerror}; make room", 4)
    finally:
        leave()
    trainer.runtime.say(f"report: {page}")
    return 0


def leave() -> None:
    """A process that ends with its group still open aborts, and the machines that succeeded wait for it."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _stopped(trainer: Trainer | None, why: str, code: int, *, agreed: bool = False) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Say why, and what is safe; threads that still score are not waited for. agreed: all ranks say it, so one does."""
    if trainer is not None:
        trainer.rewards.close()
    if agreed and trainer is not None and not trainer.runtime.is_main:
        return code
    print(f"\n{why}", file=sys.stderr)
    if trainer is not None:
        saved = trainer.checkpoints.epochs()
        safe = (
            f"everything up to epoch {saved[-1]} is in {trainer.folder}"
            if saved
            else "no epoch was finished yet"
        )
        again = (
            ""
            if trainer.config.checkpoint.resume == "auto"
            else " with --config.checkpoint.resume=auto"
        )
        print(f"{safe}; the same command{again} goes on from there.", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
