"""GenEval's words (arXiv 2310.11513): classes, colours, relations, numbers, plurals."""

from __future__ import annotations

from reward_models.geneval_logic import CLASSES, COLORS, RELATIONS

__all__ = ["CLASSES", "COLORS", "NUMBERS", "RELATIONS", "many", "one", "plural"]

NUMBERS = {"two": 2, "three": 3, "four": 4}

# These are counted in pairs or heads; the detector's instance is the pair, the head.
UNITS = {"skis": "pair", "scissors": "pair", "broccoli": "head"}
IRREGULAR = {"person": "people", "sheep": "sheep", "knife": "knives"}
IRREGULAR["computer mouse"] = "computer mice"


def one(name: str, color: str = "") -> str:
    """A class with its article: "an apple", "a red apple", "a pair of red skis"."""
    colored = f"{color} {name}".strip()
    words = f"{UNITS[name]} of {colored}" if name in UNITS else colored
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def many(number: str, name: str) -> str:
    """A counted class: "two apples", "three people", "four pairs of skis"."""
    return f"{number} {UNITS[name]}s of {name}" if name in UNITS else f"{number} {plural(name)}"


def plural(name: str) -> str:
    ending = "es" if name.endswith(("s", "x", "ch", "sh")) else "s"
    return IRREGULAR.get(name, name + ending)
