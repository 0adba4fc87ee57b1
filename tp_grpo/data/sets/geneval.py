"""GenEval prompts (arXiv 2310.11513) with the benchmark's metadata; train and test share no scene.

An entry is a line of the benchmark's `evaluation_metadata.jsonl`: {"tag", "include": [{"class",
"count", "color"?, "position"?: [relation, index of the clause it relates to]}], "exclude"?:
[{"class", "count"}], "prompt"}. As there, every prompt starts with "a photo of", counts go from
two to four, and no prompt colours a person. Unlike there, plurals and pairs are English
("four benches", "a pair of skis").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tp_grpo.data.sets import draw
from tp_grpo.data.sets.coco import CLASSES, COLORS, NUMBERS, RELATIONS, many, one

Entry = dict[str, Any]

# Training as in Flow-GRPO (arXiv 2505.05470): mostly positions, no single objects; only 240 counts
# exist. The test has the benchmark's own mix: all 80 single objects, about 100 of each other tag.
_SIZES = {
    "single_object": (0, 80),
    "two_object": (100, 100),
    "counting": (160, 80),
    "colors": (100, 100),
    "position": (700, 100),
    "color_attr": (300, 100),
}
TRAIN_SIZES = {tag: train for tag, (train, _) in _SIZES.items()}
TEST_SIZES = {tag: test for tag, (_, test) in _SIZES.items()}

_COLORABLE = tuple(name for name in CLASSES if name != "person")
_OPPOSITE = {"right of": "left of", "below": "above"}


def _entry(tag: str, words: str, *include: dict[str, Any], **more: Any) -> Entry:
    return {"tag": tag, "include": [*include], **more, "prompt": f"a photo of {words}"}


def _clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def _single_object(name: str) -> Entry:
    return _entry("single_object", one(name), _clause(name))


def _two_object(first: str, second: str) -> Entry:
    words = f"{one(first)} and {one(second)}"
    return _entry("two_object", words, _clause(first), _clause(second))


def _counting(name: str, number: str) -> Entry:
    count = NUMBERS[number]
    exclude = [_clause(name, count + 1)]
    return _entry("counting", many(number, name), _clause(name, count), exclude=exclude)


def _colors(name: str, color: str) -> Entry:
    return _entry("colors", one(name, color), _clause(name, color=color))


def _position(first: str, relation: str, second: str) -> Entry:
    words = f"{one(first)} {relation} {one(second)}"
    # Clauses are judged in order, so the one that the position refers to comes first.
    return _entry("position", words, _clause(second), _clause(first, position=[relation, 0]))


def _color_attr(first: str, color1: str, second: str, color2: str) -> Entry:
    words = f"{one(first, color1)} and {one(second, color2)}"
    clauses = _clause(first, color=color1), _clause(second, color=color2)
    return _entry("color_attr", words, *clauses)


class _Tag(NamedTuple):
    """make: an entry from one value of each axis."""

    make: Callable[..., Entry]
    axes: tuple[Sequence[str], ...]

    def entries(self, seed: int, name: str) -> Iterator[Entry]:
        """Every entry once, in a random order, without those that repeat a class or a color."""
        n = math.prod(map(len, self.axes))
        for index in draw.order(n, draw.generator(seed, "geneval", name)):
            values = []
            for axis in self.axes:
                index, place = divmod(index, len(axis))
                values.append(axis[place])
            entry = self.make(*values)
            if not _repeats(entry, "class") and not _repeats(entry, "color"):
                yield entry


def _repeats(entry: Entry, key: str) -> bool:
    values = [clause[key] for clause in entry["include"] if key in clause]
    return len(set(values)) < len(values)


TAGS = {
    "single_object": _Tag(_single_object, (CLASSES,)),
    "two_object": _Tag(_two_object, (CLASSES, CLASSES)),
    "counting": _Tag(_counting, (CLASSES, tuple(NUMBERS))),
    "colors": _Tag(_colors, (_COLORABLE, COLORS)),
    "position": _Tag(_position, (CLASSES, RELATIONS, CLASSES)),
    "color_attr": _Tag(_color_attr, (_COLORABLE, COLORS, _COLORABLE, COLORS)),
}


_TYPES = {"class": str, "count": int, "color": str}  # of a clause's values


def scene(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an entry asks to see, however it is worded: "cat left of dog" is "dog right of cat".

    Raises KeyError, TypeError, IndexError or ValueError for an entry that is none of GenEval's.
    """
    clauses = entry["include"]
    for clause in clauses:
        for key, kind in _TYPES.items():
            if key in clause and not isinstance(clause[key], kind):
                raise TypeError(f'"{key}" is {clause[key]!r:.50}, not of type {kind.__name__}')
    things = [(clause["class"], clause["count"], clause.get("color", "")) for clause in clauses]
    relations = []
    for thing, clause in zip(things, clauses, strict=True):
        if "position" in clause:
            relation, target = clause["position"]
            if not isinstance(relation, str):
                raise TypeError(f'"position" begins with {relation!r:.50}, not with a relation')
            first, second = thing, things[target]
            if relation in _OPPOSITE:
                relation, first, second = _OPPOSITE[relation], second, first
            relations.append((first, relation, second))
    return (str(entry["tag"]), tuple(sorted(things)), tuple(sorted(relations)))


def build(
    *,
    seed: int,
    train: Mapping[str, int] = TRAIN_SIZES,
    test: Mapping[str, int] = TEST_SIZES,
    keep_out: Collection[tuple[Any, ...]] = (),
    shrink: Collection[str] = (),
) -> tuple[list[Entry], list[Entry]]:
    """(train, test) entries, shuffled; no scene twice, no scene of `keep_out` (see `scene`).

    train, test: entries by tag. The test set does not depend on the size of the training set.
    shrink: tags that may get fewer, first for the test, where too few scenes are left.
    Raises ValueError for an unknown tag, and when another tag has fewer scenes than are asked.
    """
    unknown = sorted({*train, *test} - set(TAGS))
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"geneval has no tag {names}; its tags are {', '.join(TAGS)}")
    splits: dict[str, list[Entry]] = {"train": [], "test": []}
    for name in TAGS:
        for_test, for_train = test.get(name, 0), train.get(name, 0)
        entries = _take(name, for_test + for_train, seed, keep_out)
        if name in shrink:
            for_test = min(for_test, max(0, len(entries) - for_train))
        elif len(entries) < for_test + for_train:
            rest = f" besides the {len(keep_out)} scenes to keep out" if keep_out else ""
            raise ValueError(
                f"{name}: {for_train} training and {for_test} test prompts were asked, but there "
                f"are only {len(entries)} scenes{rest}; ask for at most {len(entries)} in all"
            )
        splits["train"] += entries[for_test:]
        splits["test"] += entries[:for_test]

    def shuffled(split: str) -> list[Entry]:
        entries = splits[split]
        order = draw.order(len(entries), draw.generator(seed, "geneval", split))
        return [entries[i] for i in order]

    return shuffled("train"), shuffled("test")


def _take(name: str, count: int, seed: int, keep_out: Collection[tuple[Any, ...]]) -> list[Entry]:
    """As many entries of a tag, fewer where it has no more."""
    seen = set(keep_out)
    entries: list[Entry] = []
    for entry in TAGS[name].entries(seed, name):
        if len(entries) == count:
            break
        key = scene(entry)
        if key not in seen:
            seen.add(key)
            entries.append(entry)
    return entries
