"""Scorers by name. A scorer is built when it is first asked for, never at import."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from reward_models.base import Metadata, Scorer, Scores, Unavailable

__all__ = [
    "Metadata",
    "Scorer",
    "Scores",
    "Unavailable",
    "build",
    "macros",
    "names",
    "register",
    "takes",
    "target",
]

_FACTORIES: dict[str, str] = {
    "aesthetic": "reward_models.aesthetic:Aesthetic",
    "clipscore": "reward_models.clipscore:ClipScore",
    "deqa": "reward_models.judge:DeQA",
    "general_ocr": "reward_models.ocr:OcrScorer",
    "geneval": "reward_models.geneval:GenEval",
    "hpsv2": "reward_models.hpsv2:HPSv2",
    "imagereward": "reward_models.imagereward:ImageReward",
    "jpeg": "reward_models.jpeg:Jpeg",
    "pickscore": "reward_models.pickscore:PickScore",
    "shapes": "reward_models.shapes:ShapesScorer",
    "unifiedreward": "reward_models.judge:UnifiedReward",
}


def register(name: str, factory: str) -> None:
    """Make `rewards = {name: weight}` build `factory`, a "module:callable"."""
    _FACTORIES[name] = factory


def names() -> list[str]:
    """The registered scorers."""
    return sorted(_FACTORIES)


def target(name: str) -> str:
    """The "module:callable" of a registered name, or the name itself if it is one; ValueError with the nearest name."""
    found = name if ":" in name else _FACTORIES.get(name)
    if found is None:
        near = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"rewards: no scorer is called {name!r}{hint} Known: {', '.join(names())}."
        )
    return found


def macros(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The macro means that these scorers declare, "scorer/mean" -> the "scorer/extra"s that it is the mean of.

    Read off the classes: nothing is built. One that is served elsewhere and unknown here has none.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        try:
            factory = _factory(name)
        except ValueError:
            continue
        for mean, extras in getattr(factory, "macros", {}).items():
            found[f"{name}/{mean}"] = tuple(f"{name}/{extra}" for extra in extras)
    return found


def build(name: str, /, **options: Any) -> Scorer:
    """Build the scorer `name`: a registered name or a "module:callable" of your own.

    Raises ValueError for an unknown name (with the nearest one), a module or callable that is not there, and options
    that the scorer does not take.
    """
    factory = _factory(name)
    try:
        scorer: Scorer = factory(**options)
    except TypeError as error:
        raise ValueError(
            f"rewards: the scorer {name!r} does not take the options {options}: {error}"
        ) from error
    return scorer


def takes(name: str, option: str) -> bool:
    """Whether the scorer's constructor has an argument of that name. Raises ValueError as `build` does."""
    return option in inspect.signature(_factory(name)).parameters


def _factory(name: str) -> Any:
    where = target(name)
    module, _, attribute = where.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"rewards: the scorer {name!r} cannot be imported from {where!r}: {error}"
        ) from error
