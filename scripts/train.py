"""Train by a config: python scripts/train.py --config=config/tp_grpo.py:shapes_tiny [--config.FIELD=VALUE ...]

Every field is listed in config/base.py. The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging
from ml_collections import config_flags

# No default: with one, overrides would be parsed here, at import, where a mistake ends in a traceback.
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py:RECIPE", lock_config=True)


def main(arguments: list[str]) -> int:
    from tp_grpo.rewards import RewardError
    from tp_grpo.trainer import Trainer
    from tp_grpo.update import RatioError

    if len(arguments) > 1:
        print(f"error: {arguments[1:]} are not options; fields are set as --config.sample.steps=8", file=sys.stderr)
        return 2
    _quiet()
    trainer = None
    try:
        try:
            trainer = Trainer(_CONFIG.value)
        except ValueError as error:  # the user's; one that comes later is ours, and keeps its traceback
            return _stopped(None, f"error: {error}", 2)
        page = trainer.run()
    except KeyboardInterrupt:
        return _stopped(trainer, "stopped by Ctrl-C", 130)
    except (RewardError, RatioError) as error:
        return _stopped(trainer, f"error: {error}", 3)
    trainer.runtime.say(f"report: {page}")
    return 0


def _parse(arguments: list[str]) -> list[str]:
    """absl's parser, without tracebacks for what the user mistyped."""
    try:
        rest: list[str] = flags.FLAGS(arguments)
        if _CONFIG.value is None:
            raise ValueError("name a config, as in --config=config/tp_grpo.py:shapes_tiny")
        _CONFIG.value.keys()  # a file that could not be loaded says so only when it is used
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        print(f"error: {_in_words(error, arguments)}", file=sys.stderr)
        print("Every field is listed in config/base.py, every recipe in config/recipes.py.", file=sys.stderr)
        sys.exit(2)
    return rest


def _in_words(error: BaseException, arguments: list[str]) -> str:
    """The message inside ml_collections' wrappings, after the argument that it is about."""
    cause: object = error
    while isinstance(cause, BaseException) and cause.args and not isinstance(cause, OSError):
        cause = cause.args[0]
    text = str(cause).strip()
    if "Traceback" in text or "Failed loading" in text:
        return text.splitlines()[-1].split("Error: ")[-1].strip()
    said = " ".join(text.split())
    for argument in arguments:
        if any(f"'{part}'" in said for part in argument.partition("=")[0].split(".")[1:]):
            return f"{argument}: no such field: {said}"
    return said


def _quiet() -> None:
    """Our own lines and bars are the terminal's; the libraries' loading bars and notices are not."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)


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
    app.run(main, flags_parser=_parse)
