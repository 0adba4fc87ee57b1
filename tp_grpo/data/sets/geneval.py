"""GenEval prompts (arXiv 2310.11513) with the official benchmark's metadata, train and test sharing no scene.

An entry is what the benchmark's `evaluation_metadata.jsonl` has a line of: {"tag", "include": [{"class", "count",
"color"?, "position"?: [relation, index of the clause it relates to]}], "exclude"?: [{"class", "count"}], "prompt"}.
As there, every prompt starts with "a photo of", counts go from two to four, and nobody asks for a coloured person.
Unlike there, plurals and pairs are English ("four benches", "a pair of skis").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tp_grpo.data.sets import draw
from tp_grpo.data.sets.coco import CLASSES, COLORS, NUMBERS, RELATIONS, many, one

Entry = dict[str, Any]

# Flow-GRPO (arXiv 2505.05470) trains on position most and on no single objects; of counts there are only 240.
TRAIN_SIZES = {
    "single_object": 0,
    "two_object": 100,
    "counting": 160,
    "colors": 100,
    "position": 700,
    "color_attr": 300,
}
# The benchmark's own mix: all 80 single objects, about 100 of each other tag.
TEST_SIZES = {
    "single_object": 80,
    "two_object": 100,
    "counting": 80,
    "colors": 100,
    "position": 100,
    "color_attr": 100,
}

_COLORABLE = tuple(name for name in CLASSES if name != "person")
_OPPOSITE = {"right of": "left of", "below": "above"}


def _entry(
    tag: str, include: list[dict[str, Any]], words: str, exclude: list[dict[str, Any]] | None = None
) -> Entry:
    entry: Entry = {"tag": tag, "include": include}
    if exclude:
        entry["exclude"] = exclude
    return {**entry, "prompt": f"a photo of {words}"}


def _clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def _single_object(name: str) -> Entry:
    return _entry("single_object", [_clause(name)], one(name))


def _two_object(first: str, second: str) -> Entry | None:
    if first == second:
        return None
    return _entry(
        "two_object", [_clause(first), _clause(second)], f"{one(first)} and {one(second)}"
    )


def _counting(name: str, number: str) -> Entry:
    count = NUMBERS[number]
    return _entry(
        "counting", [_clause(name, count)], many(number, name), exclude=[_clause(name, count + 1)]
    )


def _colors(name: str, color: str) -> Entry:
    return _entry("colors", [_clause(name, color=color)], one(name, color))


def _position(first: str, relation: str, second: str) -> Entry | None:
    if first == second:
        return None
    # The clause that is related to comes first: clauses are judged in order.
    include = [_clause(second), _clause(first, position=[relation, 0])]
    return _entry("position", include, f"{one(first)} {relation} {one(second)}")


def _color_attr(first: str, color1: str, second: str, color2: str) -> Entry | None:
    if first == second or color1 == color2:
        return None
    include = [_clause(first, color=color1), _clause(second, color=color2)]
    return _entry("color_attr", include, f"{one(first, color1)} and {one(second, color2)}")


@dataclass(frozen=True)
class _Tag:
    """make(one value of each axis) is an entry, or None where the values do not go together."""

    make: Callable[..., Entry | None]
    axes: tuple[Sequence[str], ...]

    def entries(self, seed: int, name: str) -> Iterator[Entry]:
        """Every entry once, in a random order."""
        for index in draw.order(
            math.prod(map(len, self.axes)), draw.generator(seed, "geneval", name)
        ):
            values = []
            for axis in self.axes:
                index, place = divmod(index, len(axis))
                values.append(axis[place])
            entry = self.make(*values)
            if entry is not None:
                yield entry


TAGS = {
    "single_object": _Tag(_single_object, (CLASSES,)),
    "two_object": _Tag(_two_object, (CLASSES, CLASSES)),
    "counting": _Tag(_counting, (CLASSES, tuple(NUMBERS))),
    "colors": _Tag(_colors, (_COLORABLE, COLORS)),
    "position": _Tag(_position, (CLASSES, RELATIONS, CLASSES)),
    "color_attr": _Tag(_color_attr, (_COLORABLE, COLORS, _COLORABLE, COLORS)),
}


def scene(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an entry asks to see, whatever order it is said in: a cat left of a dog is a dog right of a cat."""
    clauses = entry["include"]
    things = [(clause["class"], clause["count"], clause.get("color", "")) for clause in clauses]
    positions = [
        (number, *clause["position"])
        for number, clause in enumerate(clauses)
        if "position" in clause
    ]
    relations = []
    for number, relation, target in positions:
        first, second = things[number], things[target]
        if relation in _OPPOSITE:
            relation, first, second = _OPPOSITE[relation], second, first
        relations.append((first, relation, second))
    return (entry["tag"], tuple(sorted(things)), tuple(sorted(relations)))


def build(
    *,
    seed: int,
    train: Mapping[str, int] = TRAIN_SIZES,
    test: Mapping[str, int] = TEST_SIZES,
    keep_out: Collection[tuple[Any, ...]] = (),
) -> tuple[list[Entry], list[Entry]]:
    """(train, test): entries by tag as many as asked, shuffled; no scene twice, none of `keep_out` (see `scene`).

    The test set does not depend on the size of the training set.
    Raises ValueError for an unknown tag, and where a tag has fewer scenes than are asked.
    """
    unknown = sorted({*train, *test} - set(TAGS))
    if unknown:
        raise ValueError(
            f"geneval has no tag {', '.join(map(repr, unknown))}; its tags are {', '.join(TAGS)}"
        )
    splits: tuple[list[Entry], list[Entry]] = ([], [])
    for name in TAGS:
        for_test, for_train = test.get(name, 0), train.get(name, 0)
        found = _take(name, for_test, for_train, seed, keep_out)
        splits[0].extend(found[for_test:])
        splits[1].extend(found[:for_test])
    ordered = [
        [entries[i] for i in draw.order(len(entries), draw.generator(seed, "geneval", split))]
        for split, entries in zip(("train", "test"), splits, strict=True)
    ]
    return ordered[0], ordered[1]


def _take(
    name: str, for_test: int, for_train: int, seed: int, keep_out: Collection[tuple[Any, ...]]
) -> list[Entry]:
    seen = set(keep_out)
    found: list[Entry] = []
    for entry in TAGS[name].entries(seed, name) if for_test + for_train else ():
        key = scene(entry)
        if key not in seen:
            seen.add(key)
            found.append(entry)
        if len(found) == for_test + for_train:
            return found
    if len(found) < for_test + for_train:
        kept_out = (
            f" beside those of the files to keep out ({len(keep_out)} scenes)" if keep_out else ""
        )
        raise ValueError(
            f"{name}: {for_train} training and {for_test} test prompts were asked, but there are only {len(found)} "
            f"scenes{kept_out}; ask for at most {len(found)} in all"
        )
    return found
