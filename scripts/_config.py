"""The --config of a script: ml_collections' flag, and its mistakes in one line instead of a traceback."""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags, logging
from ml_collections import config_flags

# No default: with one, overrides would be parsed here, at import, where a mistake ends in a traceback.
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py:RECIPE", lock_config=True)
CONFIG_HELP = """
  --config=FILE.py:RECIPE
      the file is the algorithm, config/tp_grpo.py or config/flow_grpo.py; the recipe is the model and the reward:
      {recipes}
  --config.FIELD=VALUE
      any field of the recipe, such as --config.sample.steps=8; all of them: docs/configuration.md"""


def parse(arguments: list[str]) -> list[str]:
    """absl's parser, without tracebacks for what the user mistyped; `--help` prints the script's own and exits."""
    if {"-h", "-help", "--help"} & set(arguments[1:]):
        print(_help(arguments[0]))
        sys.exit(0)
    try:
        rest: list[str] = flags.FLAGS(arguments)
        if CONFIG.value is None:
            raise ValueError("name a config, as in --config=config/tp_grpo.py:shapes_tiny")
        CONFIG.value.keys()  # a file that could not be loaded says so only when it is used
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        print(f"error: {_in_words(error, arguments)}", file=sys.stderr)
        print(
            "Every field is listed in config/base.py, every recipe in config/recipes.py.",
            file=sys.stderr,
        )
        sys.exit(2)
    if len(rest) > 1:
        print(
            f"error: {rest[1:]} are not options; fields are set as --config.sample.steps=8",
            file=sys.stderr,
        )
        sys.exit(2)
    return rest


def _help(script: str) -> str:
    """What the script says of itself, and its options: --config first, for every script has it."""
    from config.recipes import RECIPES

    names = textwrap.fill(
        ", ".join(RECIPES), 110, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    lines = [str(sys.modules["__main__"].__doc__), "options:" + CONFIG_HELP.format(recipes=names)]
    for flag in flags.FLAGS.get_flags_for_module(script):
        given = "" if flag.boolean else f"={flag.name.upper()}"
        default = (
            "" if flag.boolean or flag.default in (None, "", []) else f" (default: {flag.default})"
        )
        lines.append(f"  --{flag.name}{given}\n      {flag.help}{default}")
    return "\n".join(lines)


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


def quiet() -> None:
    """Our own lines and bars are the terminal's; the libraries' loading bars and notices are not."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
