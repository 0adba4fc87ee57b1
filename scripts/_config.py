"""The --config of a script: ml_collections' flag, with mistakes in one line, not a traceback."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
import traceback
import warnings
from importlib.machinery import SourceFileLoader
from logging import getLogger
from pathlib import Path
from types import ModuleType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from reward_models import own_code, terminal
from tp_grpo.store import files

CONFIGS = Path(__file__).resolve().parents[1] / "config"


class ConfigFileError(Exception):
    """A mistake in a config file: the file, the line and the error."""


class _Parser(flags.ArgumentParser):
    """ml_collections' loads the file too, but ends in a traceback where the file is at fault."""

    def parse(self, argument: str) -> ConfigDict:
        """What `get_config` of FILE.py[:RECIPE] returns, locked.

        Raises OSError for a file that cannot be read, ConfigFileError for any other mistake.
        """
        name, *recipe = argument.split(":", 1)
        file = str(files.expanded(name))
        try:
            config = _module(file).get_config(*recipe)
        except ConfigFileError:
            raise
        except own_code.RAISED as error:
            frames = traceback.extract_tb(error.__traceback__)
            if isinstance(error, OSError) and all(frame.filename != file for frame in frames):
                raise
            in_words = isinstance(error, ValueError) and _is_ours(frames[-1].filename)
            raise ConfigFileError(error if in_words else own_code.mistake(error, file)) from error
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise ConfigFileError(f"{file}: get_config returns a ConfigDict, got {kind}")
        return config.lock()


def _module(file: str) -> ModuleType:
    loader = SourceFileLoader("config_config", file)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigFileError(f"{file} has no function get_config")
    return module


def _is_ours(file: str) -> bool:
    """Whether it is in config/, whose ValueErrors say all, such as which recipes there are."""
    return Path(file).resolve().parent == CONFIGS


# Without a default: it would be parsed here, at import, where a mistake ends in a traceback.
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py:RECIPE", lock_config=True)
flags.FLAGS["config"].parser = _Parser()
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
    terminal.accept_any_text()
    getLogger("bitsandbytes").setLevel("ERROR")  # on some CPUs it says that a kernel is missing
    if {"-h", "-help", "--help"} & set(arguments[1:]):
        print(_help(arguments[0]))
        sys.exit(0)
    try:
        rest: list[str] = flags.FLAGS(arguments)
        if CONFIG.value is None:
            raise ValueError("name a config, as in --config=config/tp_grpo.py:shapes_tiny")
    except ConfigFileError as error:
        _fail(str(error))
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
    text = own_code.innermost(error)
    for argument in arguments:
        if argument.startswith("--config.rewards.scorers.") and _scorer(argument) in text:
            example = "--config.rewards.scorers=\"{'pickscore': 1.0, 'jpeg': 0.0}\""
            return f"{argument}: that scorer is not in the recipe; give all of them: {example}"
    for argument in arguments:
        if any(f"'{part}'" in text for part in argument.partition("=")[0].split(".")[1:]):
            return f"{argument}: no such field: {text}"
    return text


def _scorer(argument: str) -> str:
    """Its name in an option such as --config.rewards.scorers.jpeg=0.0."""
    return argument.partition("=")[0].split(".")[3]


def quiet() -> None:
    """Silence the libraries' loading bars and notices: the terminal shows our own lines."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
