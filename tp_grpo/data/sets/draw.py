"""Drawing at random without repeats, the same on every machine and Python version for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

PATIENCE = 1000  # repeats in a row after which a source counts as exhausted


def generator(seed: int, *names: str) -> random.Random:
    """A stream of its own for each purpose, so that asking more of one leaves the others as they were."""
    return random.Random(" ".join([str(seed), *names]))


def order(n: int, rng: random.Random) -> Iterator[int]:
    """0..n-1 in a random order, drawn as it is used: taking k costs k, whatever n is (Fisher-Yates)."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        first = moved.pop(i, i)
        yield first if j == i else moved.get(j, j)
        moved[j] = first


def distinct(draw: Callable[[], str], n: int, what: str) -> list[str]:
    """n results of `draw`, no two the same but for case.

    Raises ValueError when `PATIENCE` draws in a row bring nothing new.
    """
    found: dict[str, str] = {}
    repeats = 0
    while len(found) < n:
        text = draw()
        repeats = repeats + 1 if text.casefold() in found else 0
        found.setdefault(text.casefold(), text)
        if repeats == PATIENCE:
            raise ValueError(
                f"{what}: {n} distinct prompts were asked, but only about {len(found)} can be made"
            )
    return list(found.values())
