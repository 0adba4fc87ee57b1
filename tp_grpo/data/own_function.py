"""A prompt set that a function of the user's makes: call it, and check what it returns."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from reward_models import own_code

NEEDED = "it must be a function without arguments that returns (prompt, metadata) pairs"


def items(source: str, setting: str) -> list[Any]:
    """What the function "module:function" returns.

    setting: what begins a message. Raises ValueError for what cannot be imported or called, and
    for whatever the module or the function raises.
    """
    module, _, function = source.partition(":")
    try:
        give = getattr(importlib.import_module(module), function)
    except own_code.RAISED as error:
        file = own_code.entered(error, "")
        by_name = not file and isinstance(error, ImportError | AttributeError | ValueError)
        reason = error if by_name else own_code.mistake(error, file or module)
        raise ValueError(f"{setting} cannot be imported: {reason}") from error
    _check_function(give, setting)
    try:
        return list(give())
    except own_code.RAISED as error:
        reason = own_code.mistake(error, own_code.entered(error, module))
        raise ValueError(f"{setting} gives no prompts: {reason}") from error


def _check_function(give: Any, setting: str) -> None:
    """Raises ValueError for what cannot be called without arguments."""
    if not callable(give):
        raise ValueError(f"{setting} is of type {type(give).__name__}; {NEEDED}")
    try:
        inspect.signature(give).bind()
    except TypeError as error:
        raise ValueError(f"{setting}: {error}; {NEEDED}") from error


def check_metadata(metadata: dict[Any, Any]) -> None:
    """Raises ValueError for what JSON cannot hold, such as a set.

    Reward servers get metadata as JSON, and a resumed run compares them by it: the text of a set
    or of an object differs from one start of Python to the next.
    """
    try:
        _check_json(metadata, "metadata")
    except RecursionError as error:
        raise ValueError("the metadata are nested too deeply, or hold themselves") from error


def _check_json(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                kind = type(key).__name__
                raise ValueError(f"{place} has the key {key!r:.50} of type {kind}: use a string")
            _check_json(entry, f"{place}[{key!r:.50}]")
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            _check_json(entry, f"{place}[{number}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(
            f"{place} is of type {type(value).__name__}, which JSON cannot hold: use strings, "
            "numbers, True, False, None, lists, and dicts with strings as keys"
        )
