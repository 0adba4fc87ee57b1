"""Captions in GenEval's families over six colours and four shapes; a tenth is held out.

A caption is (prompt, metadata): `reward_models.shapes` judges by the metadata, `render` draws it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import product
from typing import Any

from reward_models.shapes import COLORS, RELATIONS, SHAPES

Caption = tuple[str, dict[str, Any]]

NUMBERS = {"two": 2, "three": 3, "four": 4}
_OBJECTS = list(product(COLORS, SHAPES))


def _object(color: str, shape: str, count: int = 1) -> dict[str, Any]:
    return {"color": color, "shape": shape, "count": count}


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _single() -> list[Caption]:
    return [(f"a {c} {s}", {"tag": "single", "objects": [_object(c, s)]}) for c, s in _OBJECTS]


def _counting() -> list[Caption]:
    return [
        (f"{word} {c} {_plural(s)}", {"tag": "counting", "objects": [_object(c, s, n)]})
        for (word, n), (c, s) in product(NUMBERS.items(), _OBJECTS)
    ]


def _pairs(joint: str, tag: str, extra: dict[str, Any]) -> list[Caption]:
    return [
        (
            f"a {c1} {s1} {joint} a {c2} {s2}",
            {"tag": tag, "objects": [_object(c1, s1), _object(c2, s2)], **extra},
        )
        for (c1, s1), (c2, s2) in product(_OBJECTS, _OBJECTS)
        if (c1, s1) != (c2, s2)
    ]


@cache
def _all() -> tuple[Caption, ...]:
    positions = [
        caption
        for name in RELATIONS
        for caption in _pairs(
            f"to the {name}" if name.endswith(" of") else name, "position", {"relation": name}
        )
    ]
    return (*_single(), *_counting(), *_pairs("and", "pair", {}), *positions)


def is_held_out(caption: Caption) -> bool:
    """One in ten pair and position captions, by a hash; never shown in (pre)training."""
    return caption[1]["tag"] in ("pair", "position") and _digest(caption)[0] % 10 == 0


def _digest(caption: Caption) -> bytes:
    return hashlib.sha256(caption[0].encode()).digest()


def train() -> list[Caption]:
    """Every caption that pretraining and training may see."""
    return [caption for caption in _all() if not is_held_out(caption)]


def held_out() -> list[Caption]:
    """The compositions kept for evaluation, mixed so that the first few show all families."""
    return sorted((caption for caption in _all() if is_held_out(caption)), key=_digest)


def words() -> list[str]:
    """Every word of every caption, sorted."""
    return sorted({word for prompt, _ in _all() for word in prompt.split()})
