"""Marks in the answers of a judge: as they are written, and as expected over the tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LOWEST, HIGHEST = 1, 5
DIGITS = {str(mark): float(mark) for mark in range(LOWEST, HIGHEST + 1)}
# Matches "Final Score: 4", "**Final Score (1-5):** 4,5/5" and "final score is <3>". The groups are
# the mark and, where the answer names one, the top of the scale.
MARK = re.compile(
    r"final\s+score\s*(?:\([^)\n]*\)(?=[\s*_]*(?:[:=]|is\b)))?"
    r"(?:</?\w+>|[\s*_:=\[($`<\"'“]|\\boxed\{|is\b)*(-?\d+(?:[.,]\d+)?)"
    r"(?:[\s*_>\"'”\])}$`]*(?:/|out\s+of)\s*(\d+))?",
    re.IGNORECASE,
)
SPACES = " \n\t▁Ġ"  # tokenizers write a space before a word in one of these ways
LEAST_MASS = 0.5  # of the probability, below which the model did not mean to name a level


class NoMark(RuntimeError):
    """An answer holds no mark on the scale."""


class Token(NamedTuple):
    """A token of an answer, and the log-probabilities of the most likely tokens at its place."""

    text: str
    alternatives: Mapping[str, float]


class Mark(NamedTuple):
    """A mark in [1, 5], and the probability of all levels together; NaN without probabilities."""

    value: float
    mass: float = math.nan


def written(answer: str) -> Mark:
    """The last mark after `Final Score:`. Raises NoMark if there is none between 1 and 5."""
    number, _ = _last(answer)
    return Mark(float(number.replace(",", ".")))


def expected(answer: str, tokens: Sequence[Token]) -> Mark:
    """The mean of the marks 1 to 5 by their probabilities at the place of the last written mark.

    Raises NoMark if none is written, if it is not whole or not a token of its own, and where
    `mean_level` does.
    """
    number, start = _last(answer)
    digit = number[0]
    if float(number.replace(",", ".")) != int(digit):
        raise NoMark(f"the mark {number} is not whole; with logprobs, ask for a whole mark")
    after = answer[start:].count(digit)  # the answer may end with "out of 5"
    for token in reversed(tokens):
        after -= token.text.count(digit)
        if after <= 0:
            if token.text.strip(SPACES) == digit:
                return mean_level(token.alternatives, DIGITS)
            raise NoMark(f"the mark {digit} is part of the token {token.text!r}")
    raise NoMark(f"the mark {digit} is not among the tokens with log-probabilities")


def mean_level(alternatives: Mapping[str, float], levels: Mapping[str, float]) -> Mark:
    """The mean of the levels' values by the softmax of their log-probabilities.

    alternatives: token -> log-probability. levels: word -> value. Case and spaces around a token do
    not matter; of several tokens for one word the likeliest counts. A word that is not listed as
    one token has the probability 0.

    Raises NoMark if the words together have less than half of the probability.
    """
    likeliest: dict[str, float] = {}
    for token, log in alternatives.items():
        word = token.strip(SPACES).lower()
        if word in levels:
            likeliest[word] = max(log, likeliest.get(word, -math.inf))
    weights = {word: math.exp(log) for word, log in likeliest.items()}
    mass = sum(weights.values())
    if not mass >= LEAST_MASS:  # NaN is not
        raise NoMark(f"{', '.join(levels)} have {mass:.1%} of the probability together")
    return Mark(sum(weights[word] * levels[word] for word in weights) / mass, mass)


def _last(answer: str) -> tuple[str, int]:
    """The last mark as it is written, and where. Raises NoMark unless it is between 1 and 5."""
    if marks := list(MARK.finditer(answer)):
        number, scale = marks[-1].groups()
        if LOWEST <= float(number.replace(",", ".")) <= HIGHEST and scale in (None, str(HIGHEST)):
            return number, marks[-1].start(1)
    raise NoMark(f"no mark from {LOWEST} to {HIGHEST} after 'Final Score:'")
