"""Prompts that ask for text in a picture: our scenes x words and phrases, the text between the only double quotes.

A held-out text is in no training prompt, alone or, when it is one word, within a phrase.
"""

from __future__ import annotations

import unicodedata
from functools import partial
from random import Random

from tp_grpo.data.sets import draw
from tp_grpo.data.sets.grammar import Grammar, shipped

TRAIN_SIZE, TEST_SIZE = 20_000, 1_000
HELD_OUT = 0.1  # share of the words, and of the phrases, that only the test set has


def target(prompt: str) -> str:
    """The text asked for: what stands between the first two double quotes."""
    return prompt.split('"')[1]


def same(text: str) -> str:
    """Texts that the reward cannot tell apart get the same: no spaces, no case (NFKC)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_texts(words: list[str], phrases: list[str], seed: int) -> tuple[list[str], list[str]]:
    """(train, test) texts, both of words and of phrases."""
    test: list[str] = []
    for kind, texts in (("words", words), ("phrases", phrases)):
        order = draw.order(len(texts), draw.generator(seed, "general_ocr", kind))
        test += [texts[next(order)] for _ in range(round(HELD_OUT * len(texts)))]
    kept = {same(text) for text in test}
    train = [
        text
        for text in [*words, *phrases]
        if same(text) not in kept and not any(same(part) in kept for part in text.split())
    ]
    return train, test


def build(
    *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) prompts, no two the same. Raises ValueError where more are asked than can be made."""
    lists = shipped("general_ocr")
    grammar = Grammar(lists["templates"], lists["slots"])
    texts = split_texts(lists["words"], lists["phrases"], seed)
    splits = []
    for name, count, own in zip(("train", "test"), (train, test), texts, strict=True):
        rng = draw.generator(seed, "general_ocr", name)
        splits.append(
            draw.distinct(partial(_sentence, grammar, own, rng), count, f"general_ocr {name}")
        )
    return splits[0], splits[1]


def _sentence(grammar: Grammar, texts: list[str], rng: Random) -> str:
    return grammar.sentence(rng, text=rng.choice(texts))
