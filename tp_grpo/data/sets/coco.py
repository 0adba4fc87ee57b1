"""The words of GenEval (arXiv 2310.11513): its scorer's classes, colours and relations; numbers, articles, plurals."""

from __future__ import annotations

from reward_models.geneval_logic import CLASSES, COLORS, RELATIONS

__all__ = ["CLASSES", "COLORS", "NUMBERS", "RELATIONS", "many", "one", "plural"]

NUMBERS = {"two": 2, "three": 3, "four": 4}

# What is counted in pairs or heads; the detector's instance is the pair, the head.
UNITS = {"skis": "pair", "scissors": "pair", "broccoli": "head"}
IRREGULAR = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
}


def one(name: str, color: str = "") -> str:
    """A class with its article: "an apple", "a red apple", "a pair of red skis"."""
    colored = f"{color} {name}".strip()
    words = f"{UNITS[name]} of {colored}" if name in UNITS else colored
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def many(number: str, name: str) -> str:
    """A class counted: "two apples", "three people", "four pairs of skis"."""
    return f"{number} {UNITS[name]}s of {name}" if name in UNITS else f"{number} {plural(name)}"


def plural(name: str) -> str:
    if name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")
