"""Train by a config: python scripts/train.py --config=config/tp_grpo.py:shapes_tiny [--config.FIELD=VALUE ...]

Every field is listed in config/base.py. The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys

from _config import CONFIG, parse, quiet
from absl import app


def main(_: list[str]) -> int:
    from tp_grpo.rewards import RewardError
    from tp_grpo.trainer import Trainer
    from tp_grpo.update import RatioError

    quiet()
    trainer = None
    try:
        try:
            trainer = Trainer(CONFIG.value)
        except ValueError as error:  # the user's; one that comes later is ours, and keeps its traceback
            return _stopped(None, f"error: {error}", 2)
        page = trainer.run()
    except KeyboardInterrupt:
        return _stopped(trainer, "stopped by Ctrl-C", 130)
    except (RewardError, RatioError) as error:
        return _stopped(trainer, f"error: {error}", 3)
    except RuntimeError as error:
        lost = trainer.runtime.explain(error) if trainer else None
        if lost is None:
            raise
        return _stopped(trainer, f"error: {lost}", 4)
    finally:
        leave()
    trainer.runtime.say(f"report: {page}")
    return 0


def leave() -> None:
    """A process that ends with its group still open aborts, and the machines that succeeded wait for it."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _stopped(trainer: Trainer | None, why: str, code: int) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Say why, and what is safe; threads that still score are not waited for."""
    print(f"\n{why}", file=sys.stderr)
    if trainer is not None:
        trainer.rewards.close()
        saved = trainer.checkpoints.epochs()
        safe = f"everything up to epoch {saved[-1]} is in {trainer.folder}" if saved else "no epoch was finished yet"
        print(f"{safe}; the same command goes on from there.", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
