"""Train a text-to-image model by reinforcement learning, as a recipe says.

    python scripts/train.py --config=config/tp_grpo.py:shapes_tiny
    python scripts/train.py --config=config/flow_grpo.py:shapes_tiny --config.run_name=mine
    accelerate launch --num_processes 8 scripts/train.py --config=config/tp_grpo.py:pickscore_sd3

The results are in runs/RUN_NAME. The same command resumes where it was stopped. SIGTERM or SIGUSR1
stops at a checkpoint, with code 0. Ctrl-C finishes the checkpoint; twice quits at once.

Exit codes: 0 done, or stopped as a scheduler asked; 2 a mistake in the command; 3 scores, ratios,
gradients or ranks that must not be trained on; 4 a lost rank or a full disk; 5 an alarm
(tracking.alarms); 130 Ctrl-C.
"""

from __future__ import annotations

from _config import CONFIG, parse, quiet
from absl import app


def main(_: list[str]) -> int:
    from tp_grpo.ranks.preemption import stop_on_second_ctrl_c
    from tp_grpo.ranks.runtime import close_group
    from tp_grpo.run import endings
    from tp_grpo.trainer import Trainer

    quiet()
    stop_on_second_ctrl_c("stopped by a second Ctrl-C; the checkpoints are whole")
    trainer = None
    ending: endings.Ending | None
    try:
        trainer = Trainer(CONFIG.value)
        ending = endings.Done(trainer.run())
        ending.close(trainer)
    except BaseException as error:
        ending = endings.of(error, trainer)
        if ending is None:
            raise
        ending.close(trainer)
    finally:
        close_group()
    return ending.code


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
