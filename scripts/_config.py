"""The --config of a script: ml_collections' flag, with mistakes in one line, not a traceback."""

from __future__ import annotations

import sys
import textwrap
import warnings
from logging import getLogger
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags, logging
from ml_collections import config_flags

# Without a default: it would be parsed here, at import, where a mistake ends in a traceback.
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py:RECIPE", lock_config=True)
HELP = """options:
  --config=FILE.py:RECIPE
      the file is the algorithm, one of
      config/{algorithms};
      the recipe is the model and the reward:
      {recipes}
  --config.FIELD=VALUE
      any field of the recipe, such as --config.sample.steps=8; see docs/configuration.md"""


def parse(arguments: list[str]) -> list[str]:
    """absl's parser, without tracebacks for typing mistakes; `--help` prints the script's."""
    getLogger("bitsandbytes").setLevel("ERROR")  # on some CPUs it says that a kernel is missing
    if {"-h", "-help", "--help"} & set(arguments[1:]):
        print(_help(arguments[0]))
        sys.exit(0)
    try:
        rest: list[str] = flags.FLAGS(arguments)
        if CONFIG.value is None:
            raise ValueError("name a config, as in --config=config/tp_grpo.py:shapes_tiny")
        CONFIG.value.keys()  # a file that could not be loaded raises only when it is used
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        places = "Every field is listed in config/base.py, every recipe in config/recipes.py."
        _fail(f"{_in_words(error, arguments)}\n{places}")
    if len(rest) > 1:
        _fail(f"{rest[1:]} are not options; fields are set as --config.sample.steps=8")
    return rest


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def mistake(error: Exception) -> int:
    """Print it in one line; returns the exit code of a mistake in the command."""
    from tp_grpo.store import files

    words = files.in_words(error) if isinstance(error, OSError) else error
    print(f"error: {words}", file=sys.stderr)
    return 2


def _help(script: str) -> str:
    """The script's docstring and its options: --config first, for every script has it."""
    from config import algorithms
    from config.recipes import RECIPES

    names = ", ".join(RECIPES)
    names = textwrap.fill(names, 100, subsequent_indent=" " * 6, break_on_hyphens=False)
    lines = [
        str(sys.modules["__main__"].__doc__),
        HELP.format(algorithms="{" + ",".join(algorithms()) + "}.py", recipes=names),
    ]
    for flag in flags.FLAGS.get_flags_for_module(script):
        value, default = f"={flag.name.upper()}", f" (default: {flag.default})"
        if flag.boolean:
            value = default = ""
        if flag.default in (None, "", []):
            default = ""
        lines.append(f"  --{flag.name}{value}\n      {flag.help}{default}")
    return "\n".join(lines)


def _in_words(error: BaseException, arguments: list[str]) -> str:
    """The innermost message of ml_collections, after the argument that it is about."""
    cause: object = error
    while isinstance(cause, BaseException) and cause.args and not isinstance(cause, OSError):
        cause = cause.args[0]
    text = str(cause).strip()
    if "Traceback" in text or "Failed loading" in text:
        return text.splitlines()[-1].split("Error: ")[-1].strip()
    text = " ".join(text.split())
    for argument in arguments:
        if argument.startswith("--config.rewards.scorers."):
            example = "--config.rewards.scorers=\"{'pickscore': 1.0, 'jpeg': 0.0}\""
            return f"{argument}: that scorer is not in the recipe; give all of them: {example}"
    for argument in arguments:
        if any(f"'{part}'" in text for part in argument.partition("=")[0].split(".")[1:]):
            return f"{argument}: no such field: {text}"
    return text


def quiet() -> None:
    """Silence the libraries' loading bars and notices: the terminal shows our own lines."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
