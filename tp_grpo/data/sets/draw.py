"""Random draws without repeats, the same on every machine and Python version for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

PATIENCE = 1000  # repeats in a row after which a source counts as exhausted


def generator(seed: int, *names: str) -> random.Random:
    """A separate stream for each purpose: drawing more from one leaves the others unchanged."""
    return random.Random(" ".join([str(seed), *names]))


def order(n: int, rng: random.Random) -> Iterator[int]:
    """0..n-1 in a random order, drawn lazily: taking k costs O(k) for any n (Fisher-Yates)."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        first = moved.pop(i, i)
        yield first if j == i else moved.get(j, j)
        moved[j] = first


def distinct(draw: Callable[[], str], n: int, what: str) -> list[str]:
    """n results of `draw`, distinct even without case.

    Raises ValueError when `PATIENCE` draws in a row bring nothing new.
    """
    texts: dict[str, str] = {}
    repeats = 0
    while len(texts) < n:
        text = draw()
        repeats = repeats + 1 if text.casefold() in texts else 0
        texts.setdefault(text.casefold(), text)
        if repeats == PATIENCE:
            asked = f"{what}: {n} distinct prompts were asked"
            raise ValueError(f"{asked}, but only about {len(texts)} can be made")
    return list(texts.values())
