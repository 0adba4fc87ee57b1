"""Scorers by name. A scorer's module is imported when the scorer is first used.

A name stands for a class or a function that builds the scorer, or for a function that scores.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from reward_models import own_code
from reward_models.base import Metadata, NotScores, Scorer, Scores, Unavailable
from reward_models.options import SECRET, check_types

__all__ = ["Metadata", "NotScores", "Scorer", "Scores", "Unavailable", "build", "register"]

_FACTORIES: dict[str, str] = {
    "aesthetic": "reward_models.aesthetic:Aesthetic",
    "clipscore": "reward_models.clipscore:ClipScore",
    "deqa": "reward_models.deqa:DeQA",
    "general_ocr": "reward_models.ocr:OcrScorer",
    "geneval": "reward_models.geneval:GenEval",
    "hpsv2": "reward_models.hpsv2:HPSv2",
    "imagereward": "reward_models.imagereward:ImageReward",
    "jpeg": "reward_models.jpeg:Jpeg",
    "judge": "reward_models.judge:Judge",
    "pairwise": "reward_models.pairwise:Pairwise",
    "pickscore": "reward_models.pickscore:PickScore",
    "pickscore_rank": "reward_models.pickscore_rank:PickScoreRank",
    "shapes": "reward_models.shapes:ShapesScorer",
    "unifiedreward": "reward_models.judge:UnifiedReward",
}


def register(name: str, factory: str) -> None:
    """Let configs use `name` for `factory`, a "module:callable"."""
    _FACTORIES[name] = factory


def names() -> list[str]:
    """The registered scorers."""
    return sorted(_FACTORIES)


def target(name: str) -> str:
    """The "module:callable" of a scorer: registered under `name`, or `name` itself.

    Raises ValueError, with the nearest name, for an unknown one.
    """
    if ":" in name:
        return name
    if name in _FACTORIES:
        return _FACTORIES[name]
    near = difflib.get_close_matches(name, _FACTORIES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    known = ", ".join(names())
    raise ValueError(f"rewards: no scorer is called {name!r}{hint} Known: {known}.")


def factory(name: str) -> Any:
    """The class or function that the scorer `name`, a registered name or "module:callable", names.

    Raises ValueError for an unknown name, and for a module or callable that cannot be imported,
    whatever the module raises.
    """
    where = target(name)
    module, _, attribute = where.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(
            f"rewards: the scorer {name!r} must name a module by its whole path and a class or "
            "function in it, as in 'my_package.rewards:MyScorer'"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except own_code.RAISED as error:
        file = own_code.entered(error, "")
        by_name = not file and isinstance(error, ImportError | AttributeError)
        reason = error if by_name else own_code.mistake(error, file or module)
        raise ValueError(
            f"rewards: the scorer {name!r} cannot be imported from {where!r}: {reason}"
        ) from error


def build(name: str, /, **options: Any) -> Scorer:
    """Build the scorer `name`.

    A class, or a function that builds a scorer, is called with the options. A function that takes
    the images, prompts and metadata is the scorer itself; its options are further arguments of it.

    Raises ValueError as `factory` does, for options that the scorer does not take or of the wrong
    type, if what is built cannot be called, if it scores groups but does not take their ids, and
    for whatever a scorer from outside this package raises, except Unavailable.
    """
    make = factory(name)
    if not callable(make):
        kind = type(make).__name__
        raise ValueError(f"rewards: {target(name)!r} is of type {kind}, no class or function")
    check_types(str(options.get("name", name)), make, options)  # a remote scorer has a `name`
    try:
        if _scores(make, options):
            inspect.signature(make).bind(*_batch(make), **options)
            scores = functools.partial(make, **options) if options else make
            return functools.update_wrapper(scores, make) if options else scores
        scorer = _make(name, make, options)
    except TypeError as error:
        shown = {k: "..." if k in SECRET else value for k, value in options.items()}
        raise ValueError(
            f"rewards: the scorer {name!r} does not take the options {shown}: {error}"
            f"{_advice(make)}"
        ) from error
    if not callable(scorer):
        raise ValueError(
            f"rewards: {name!r} built an object of type {type(scorer).__name__}, which cannot be "
            f"called, so it is no scorer{_advice(make)}"
        )
    _check_call(name, scorer)
    return scorer


def _make(name: str, make: Any, options: Mapping[str, Any]) -> Scorer:
    """What `make` builds.

    Raises TypeError for other options than it takes, ValueError for what the code of a scorer from
    outside this package raises; ours raise what they mean, as does any that is Unavailable.
    """
    with contextlib.suppress(ValueError):  # written in C
        inspect.signature(make).bind(**options)
    try:
        scorer: Scorer = make(**options)
    except Unavailable:
        raise
    except own_code.RAISED as error:
        where = target(name)
        if where.startswith((f"{__name__}.", f"{__name__}:")):
            raise
        reason = own_code.mistake(error, own_code.entered(error, where))
        raise ValueError(f"rewards: the scorer {name!r} cannot be built: {reason}") from error
    return scorer


def _check_call(name: str, scorer: Scorer) -> None:
    """Raises ValueError unless the scorer can be called with a batch, as far as one can tell."""
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*_batch(scorer))
    except TypeError as error:
        declares = "declares" if compares(scorer) else "does not declare"
        raise ValueError(
            f"rewards: {name!r} {declares} scores_groups = True, so its call must have the "
            f"arguments {', '.join(_batch(scorer))}: {error}{_undeclared(scorer)}"
        ) from error


_BATCH = ("images", "prompts", "metadata")


def compares(scorer: Any) -> bool:
    """Whether a scorer, or its class, declares `scores_groups`: see `base.Scorer`."""
    return bool(getattr(scorer, "scores_groups", False))


def _batch(scorer: Any) -> tuple[str, ...]:
    """The arguments of its call."""
    return (*_BATCH, "groups") if compares(scorer) else _BATCH


def _scores(make: Any, options: Iterable[str]) -> bool:
    """Whether it is itself a scorer: no class, and besides options it requires a batch alone."""
    required = [
        parameter.name
        for parameter in _parameters(make).values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    batch = [name for name in required if name not in options]
    return not inspect.isclass(make) and len(batch) == len(_batch(make))


def _parameters(make: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # not callable, or written in C
        return {}


def _advice(make: Any) -> str:
    """What a function must look like; "" for a class."""
    if inspect.isclass(make):
        return ""
    if undeclared := _undeclared(make):
        return undeclared
    count = {3: "three", 4: "four"}[len(_batch(make))]
    return (
        f". A function that scores has {count} arguments without a default, "
        f"{', '.join(_batch(make))}; any other must return a scorer"
    )


def _undeclared(scorer: Any) -> str:
    """What a scorer lacks that takes groups and does not declare it; "" for others."""
    forgot = "groups" in _parameters(scorer) and not compares(scorer)
    return ". One that compares the images of a group sets scores_groups = True" if forgot else ""


def takes(name: str, option: str) -> bool:
    """Whether the scorer has an option of that name. Raises ValueError as `factory` does."""
    return option in _parameters(factory(name))


def compares_groups(names: Iterable[str]) -> list[str]:
    """Those of the scorers whose class or function declares `scores_groups`; none is built."""

    def declared(name: str) -> bool:
        try:
            return compares(factory(name))
        except ValueError:  # unknown here, as one of a reward server may be
            return False

    return [name for name in names if declared(name)]


def macros(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The macro means that the scorers declare: "scorer/mean" -> its "scorer/extra"s.

    They are attributes of the classes, so no scorer is built. A scorer that is unknown here, as
    one of a reward server may be, has none.
    """
    means: dict[str, tuple[str, ...]] = {}
    for name in names:
        try:
            declared = getattr(factory(name), "macros", {})
        except ValueError:
            continue
        for mean, extras in declared.items():
            means[f"{name}/{mean}"] = tuple(f"{name}/{extra}" for extra in extras)
    return means
