"""The options of this project's scorers: each value must have the type that is annotated."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

SECRET = ("api_key", "token")  # options that no message shows


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_dict(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


# annotation -> (whether a value has that type, the type in words); others are not checked
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "float": (
        lambda value: _is_number(value) and -float("inf") < value < float("inf"),
        "a finite number",
    ),
    "int": (lambda value: _is_number(value) and isinstance(value, Integral), "a whole number"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "Mapping[str, Any] | None": (_is_dict, "a dict, as {'seed': 1}"),
}


def check_types(scorer: str, make: Any, options: Mapping[str, Any]) -> None:
    """Raises ValueError, naming scorer, option and value, for an option of another type.

    scorer: its name. make: its class; one from outside this package reads its options itself.
    """
    if not inspect.isclass(make) or make.__module__.partition(".")[0] != __package__:
        return
    for parameter in _parameters(make):
        if parameter.name not in options or parameter.annotation not in _TYPES:
            continue
        value, (fits, words) = options[parameter.name], _TYPES[parameter.annotation]
        if not fits(value):
            hidden = parameter.name in SECRET and value is not None
            shown = f"(of type {type(value).__name__})" if hidden else f"= {value!r}"
            raise ValueError(f"{scorer}: {parameter.name} {shown} must be {words}")


def _parameters(make: type) -> Iterator[inspect.Parameter]:
    """The parameters of its constructor and, behind `**others`, of those of its bases."""
    for cls in make.__mro__:
        if "__init__" in vars(cls):
            *_, last = parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            yield from parameters
            if last.kind is not last.VAR_KEYWORD:
                return


def environment_number(scorer: str, variable: str, default: int) -> int:
    """The number in the environment's `variable`, as a launcher sets it.

    Raises ValueError, naming scorer and variable, for another text.
    """
    text = os.environ.get(variable) or str(default)
    try:
        return int(text)
    except ValueError as error:
        where = f"the environment's {variable} = {text!r}"
        raise ValueError(f"{scorer}: {where} must be a whole number") from error


def header_value(scorer: str, where: str, value: str) -> str:
    """A key or token without white space around it.

    Raises ValueError, naming scorer and `where` it stands, for one that no HTTP header can hold.
    It does not show the value.
    """
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{scorer}: {where} must be one line of ASCII characters")
    return value
