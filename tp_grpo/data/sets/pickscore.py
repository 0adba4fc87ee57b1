"""What people ask image models for: Pick-a-Pic's prompts (arXiv 2305.01569), or our grammar's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tp_grpo.data.lines import CLIP_WORDS
from tp_grpo.data.sets import draw
from tp_grpo.data.sets.grammar import Grammar, shipped

# Pick-a-Pic v1 without images and without prompts that are not safe for work; 89 MB.
HUB = "CarperAI/pickapic_v1_no_images_training_sfw"
COLUMN = "caption"
TEXTS = ("string", "large_string", "string_view")  # as `datasets` names the type
TRAIN_SIZE, TEST_SIZE = 25_000, 2_000


class Unreachable(ValueError):
    """The data set cannot be loaded; the message says why."""


def from_grammar(
    *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) prompts of our grammar, distinct even without case.

    Raises ValueError when more are asked than can be made.
    """
    lists = shipped("pickscore")
    grammar = Grammar(lists["templates"], lists["slots"])
    rng = draw.generator(seed, "pickscore")
    prompts = draw.distinct(partial(grammar.sentence, rng), train + test, "pickscore")
    return prompts[test:], prompts[:test]


def from_hub(
    source: str = HUB, *, seed: int, train: int = TRAIN_SIZE, test: int = TEST_SIZE
) -> tuple[list[str], list[str]]:
    """(train, test) prompts of a hub data set, or of a folder that `datasets` can read.

    Raises Unreachable when it cannot be loaded, ValueError when it has no column "caption", one
    that holds no text, or too few prompts.
    """
    prompts = clean(_captions(source))
    if len(prompts) < train + test:
        raise ValueError(
            f"{source} has {len(prompts)} usable prompts, but {train} for training and {test} for "
            f"the test were asked; give --train and --test that add up to at most {len(prompts)}"
        )
    order = draw.order(len(prompts), draw.generator(seed, "pickscore"))
    chosen = [prompts[next(order)] for _ in range(train + test)]
    return chosen[test:], chosen[:test]


def clean(captions: Iterable[str | None]) -> list[str]:
    """Each prompt once (ignoring case), on one line, not empty, short enough for CLIP; sorted."""
    lines = {" ".join(caption.split()) for caption in captions if caption}
    kept: dict[str, str] = {}
    for line in sorted(lines):
        if 0 < len(line.split()) <= CLIP_WORDS:
            kept.setdefault(line.casefold(), line)
    return list(kept.values())


def _captions(source: str) -> Iterable[str | None]:
    try:
        import datasets
    except ImportError as error:
        message = f"reading {source} needs the package datasets: pip install datasets"
        raise Unreachable(message) from error
    try:
        table = datasets.load_dataset(source, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise Unreachable(f"{source} cannot be loaded: {type(error).__name__}: {error}") from error
    if COLUMN not in table.column_names:
        columns = ", ".join(table.column_names)
        raise ValueError(f'{source} has no column "{COLUMN}"; its columns are {columns}')
    kind = getattr(table.features[COLUMN], "dtype", "nested")
    if kind not in TEXTS:
        raise ValueError(f'{source}: the column "{COLUMN}" is of type {kind}; captions are texts')
    captions: Iterable[str | None] = table.unique(COLUMN)
    return captions
