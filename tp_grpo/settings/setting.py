"""How a setting is stated, and how a section of settings is read from a config."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """What one setting accepts and means; bounds hold for each entry of a tuple."""

    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None  # only together with `low` or `above`
    above: float | None = None  # an exclusive bound
    choices: Collection[str] = ()  # of a table: also what was added to it later
    required: str = ""  # why the text must not be empty
    why: str = ""  # in messages, in place of the bounds
    path: bool = False  # a file or folder, in which ~ is the user's own

    @property
    def bounds(self) -> str:
        """The range or choices in words; empty: any value of the type."""
        if self.choices:
            return ", ".join(self.choices)
        if self.above is not None:
            most = "" if self.high is None else f", at most {self.high:g}"
            return f"above {self.above:g}{most}"
        if self.low is None:
            return "not empty" if self.required else ""
        low = f"{self.low:g}"
        return f"at least {low}" if self.high is None else f"between {low} and {self.high:g}"

    def mistake(self, name: str, value: Any, hint: Any) -> str:
        """What is wrong with `value` of the type `hint`; empty: nothing."""
        if not _has_type(value, hint):
            return f"{name} = {value!r} must be of type {type_name(hint)}"
        if self.required and not value:
            return f"{name} is empty: {self.required}"
        entries = value if isinstance(value, list | tuple) else [value]
        unknown = [entry for entry in entries if self.choices and entry not in self.choices]
        if unknown and entries is value:
            return f"{name}: {unknown} are not among {self.bounds}"
        if unknown:
            return f"{name} = {value!r} is not one of {self.bounds}"
        if not all(map(self._within, entries)):
            return f"{name} = {value!r}" + (
                f": {self.why}" if self.why else f" must be {self.bounds}"
            )
        return ""

    def _within(self, value: Any) -> bool:
        """NaN is within no bounds."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )


def setting(meaning: str, unit: str = "", **facts: Any) -> Any:
    """A dataclass field that states a `Setting`."""
    return field(metadata={"setting": Setting(meaning, unit, **facts)})


class Section:
    """A frozen dataclass of settings, and of sections."""

    def mistakes(self) -> Iterable[str]:
        """What does not fit together although each setting is right by itself."""
        return ()


def read(section: Any, values: Any, mistakes: list[str], prefix: str = "") -> Any:
    """An instance of `section` from a nested dict; None after appending its mistakes."""
    if not isinstance(values, Mapping):
        mistakes.append(f"{prefix.rstrip('.')} = {values!r} must be a section of settings")
        return None
    hints, before, inner = get_type_hints(section), len(mistakes), {}
    for name in [name for name in values if name not in hints]:
        near = difflib.get_close_matches(name, hints, n=1)
        mistakes.append(
            f"{prefix}{name}: no such setting"
            + (f"; did you mean {prefix}{near[0]}?" if near else "")
        )
    for declared in fields(section):
        name, hint = declared.name, hints[declared.name]
        if hint == tuple[str, ...] and isinstance(values.get(name), list | tuple | str):
            values = {**values, name: _words(values[name])}
        if name not in values:
            mistakes.append(f"{prefix}{name} is missing")
        elif "setting" not in declared.metadata:
            inner[name] = read(hint, values[name], mistakes, f"{prefix}{name}.")
        elif mistake := declared.metadata["setting"].mistake(prefix + name, values[name], hint):
            mistakes.append(mistake)
        elif isinstance(values[name], list):
            inner[name] = tuple(values[name])
        elif declared.metadata["setting"].path:
            inner[name] = os.path.expanduser(values[name])
    if len(mistakes) > before:
        return None
    settings = section(**{**values, **inner})
    mistakes.extend(settings.mistakes())
    return settings


def _words(value: Any) -> Any:
    """Names in a list, of which a command may give several in one text: "a,b" is ("a", "b")."""
    parts = [value] if isinstance(value, str) else value
    if not all(isinstance(part, str) for part in parts):
        return value
    return tuple(word.strip() for part in parts for word in part.split(",") if word.strip())


def stated(section: Any, prefix: str = "") -> Iterator[tuple[str, Setting, str]]:
    """(dotted name, setting, type) of every setting, in order."""
    hints = get_type_hints(section)
    for declared in fields(section):
        name, hint = prefix + declared.name, hints[declared.name]
        if "setting" in declared.metadata:
            yield name, declared.metadata["setting"], type_name(hint)
        else:
            yield from stated(hint, f"{name}.")


def type_name(hint: Any) -> str:
    """As it is written in the source."""
    if get_origin(hint) is None:
        return str(hint.__name__)
    return str(hint).replace("collections.abc.", "").replace("typing.", "")


def _has_type(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        types = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(types) and all(map(_has_type, value, types))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)
