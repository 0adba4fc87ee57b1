"""What people ask image models for: Pick-a-Pic's prompts (arXiv 2305.01569), or those of a grammar of our own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tp_grpo.data.sets import draw
from tp_grpo.data.sets.grammar import Grammar, shipped

# Pick-a-Pic v1 without images and without the prompts that are not fit for work; 89 MB, its prompts in "caption".
HUB = "CarperAI/pickapic_v1_no_images_training_sfw"
COLUMN = "caption"
MAX_WORDS = 77  # CLIP, which judges, reads 77 tokens
TRAIN_SIZE, TEST_SIZE = 25_000, 2_000


class Unreachable(ValueError):
    """The data set could not be had; the message says why and what else there is."""


def from_grammar(
    *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) prompts of the shipped grammar, no two the same but for case.

    Raises ValueError where more are asked than can be made.
    """
    lists = shipped("pickscore")
    grammar = Grammar(lists["templates"], lists["slots"])
    rng = draw.generator(seed, "pickscore")
    found = draw.distinct(partial(grammar.sentence, rng), train + test, "pickscore")
    return found[test:], found[:test]


def from_hub(
    source: str = HUB, *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) prompts of a hub data set, or of a folder that `datasets` can read, with a column "caption".

    Raises Unreachable where it cannot be loaded, ValueError where it has no such column or too few prompts.
    """
    found = clean(_captions(source))
    if len(found) < train + test:
        raise ValueError(
            f"{source} has {len(found)} usable prompts, but {train} for training and {test} for the test were asked; "
            f"give --train and --test that add up to at most {len(found)}"
        )
    order = draw.order(len(found), draw.generator(seed, "pickscore"))
    chosen = [found[next(order)] for _ in range(train + test)]
    return chosen[test:], chosen[:test]


def clean(captions: Iterable[str | None]) -> list[str]:
    """Each prompt once (case aside), on one line, none empty and none longer than CLIP reads; sorted."""
    lines = (" ".join(caption.split()) for caption in captions if caption)
    kept: dict[str, str] = {}
    for line in sorted({line for line in lines if line and len(line.split()) <= MAX_WORDS}):
        kept.setdefault(line.casefold(), line)
    return list(kept.values())


def _captions(source: str) -> Iterable[str | None]:
    try:
        import datasets
    except ImportError as error:
        raise Unreachable(
            f"reading {source} needs the package datasets: pip install datasets"
        ) from error
    try:
        table = datasets.load_dataset(source, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise Unreachable(f"{source} cannot be loaded: {type(error).__name__}: {error}") from error
    if COLUMN not in table.column_names:
        raise ValueError(
            f'{source} has no column "{COLUMN}"; its columns are {", ".join(table.column_names)}'
        )
    captions: Iterable[str | None] = table.unique(COLUMN)
    return captions
