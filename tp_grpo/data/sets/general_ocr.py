"""Prompts that ask for text in a picture: scenes, with the text in the only double quotes.

No training prompt has a held-out text, alone or, if it is one word, within a phrase.
"""

from __future__ import annotations

import unicodedata

from tp_grpo.data.sets import draw
from tp_grpo.data.sets.grammar import Grammar, shipped

TRAIN_SIZE, TEST_SIZE = 20_000, 1_000
HELD_OUT = 0.1  # share of the words, and of the phrases, that only the test set has


def target(prompt: str) -> str:
    """The text asked for: what stands between the first two double quotes."""
    return prompt.split('"')[1]


def same(text: str) -> str:
    """Equal for texts that the reward cannot tell apart: without spaces or case (NFKC)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_texts(words: list[str], phrases: list[str], seed: int) -> tuple[list[str], list[str]]:
    """(train, test) texts, both with words and phrases."""
    test: list[str] = []
    for kind, texts in (("words", words), ("phrases", phrases)):
        order = draw.order(len(texts), draw.generator(seed, "general_ocr", kind))
        test += [texts[next(order)] for _ in range(round(HELD_OUT * len(texts)))]
    held_out = {same(text) for text in test}
    texts = [*words, *phrases]
    return [t for t in texts if held_out.isdisjoint(map(same, [t, *t.split()]))], test


def build(
    *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) distinct prompts. Raises ValueError when more are asked than can be made."""
    lists = shipped("general_ocr")
    grammar = Grammar(lists["templates"], lists["slots"])
    train_texts, test_texts = split_texts(lists["words"], lists["phrases"], seed)

    def sentences(split: str, count: int, texts: list[str]) -> list[str]:
        rng = draw.generator(seed, "general_ocr", split)
        return draw.distinct(
            lambda: grammar.sentence(rng, text=rng.choice(texts)), count, f"general_ocr {split}"
        )

    return sentences("train", train, train_texts), sentences("test", test, test_texts)
