"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) as pure functions on detections: no model, no image.

A prompt's metadata asks for objects by class and count, perhaps with a colour or a position, and may exclude some:
{"tag": "position", "prompt": ..., "include": [{"class": "cat", "count": 1},
{"class": "dog", "count": 1, "color": "red", "position": ["left of", 0]}], "exclude": [{"class": "cat", "count": 2}]}.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
SCORINGS = ("fixed", "reference")
# COCO's 80 classes in COCO's order, by GenEval's names: COCO itself says mouse, remote and keyboard.
_CLASSES = """
person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|bench|
bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|
sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|
bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|
toilet|tv|laptop|computer mouse|tv remote|computer keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|
clock|vase|scissors|teddy bear|hair drier|toothbrush
"""
CLASSES = tuple(_CLASSES.replace("\n", "").split("|"))

THRESHOLD, COUNTING_THRESHOLD = (
    0.3,
    0.9,
)  # a detection counts above this score; where tag is counting, the second
MAX_OBJECTS = 16  # of a class, the surest
SLACK = 0.1  # share of both objects' sizes that an offset must exceed
DIRECTION = 0.5  # share of the whole offset that a relation's axis must have


@dataclass(frozen=True)
class Detection:
    """One object: label, a COCO-80 index; score in [0, 1]; box (x0, y0, x1, y1) in pixels, x1 and y1 beyond the last;
    mask (H, W) bool where a detector gives one; color, "" until it has been classified."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    color: str = ""


@dataclass(frozen=True)
class Clause:
    """`count` objects of class `label`. "" asks for no color, or no relation; a relation is to the clause `target`."""

    label: int
    count: int
    color: str = ""
    relation: str = ""
    target: int = 0


@dataclass(frozen=True)
class Task:
    """What a prompt asks for; `exclude` holds (label, n): fewer than n objects of the class."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[tuple[int, int], ...] = ()

    @property
    def threshold(self) -> float:
        return COUNTING_THRESHOLD if self.tag == "counting" else THRESHOLD


@dataclass(frozen=True)
class Verdict:
    """graded: the training reward, in [0, 1] when scored "fixed"; strict and nonstrict, the official metric: 0 or 1."""

    graded: float
    strict: float
    nonstrict: float


Found = dict[int, list[Detection]]


def parse(metadata: dict[str, Any], prompt: str) -> Task:
    """The Task of a prompt. Raises ValueError, naming prompt and field, for what is missing, unknown or impossible."""
    tag = _choice(metadata.get("tag"), TAGS, prompt, "tag")
    include = _list(metadata, "include", prompt)
    if not include:
        raise _error(
            prompt, "include", "is missing or empty: it lists the objects that the prompt asks for"
        )
    clauses = tuple(_clause(entry, number, prompt) for number, entry in enumerate(include))
    exclude = tuple(
        _object(entry, f"exclude[{number}]", prompt)
        for number, entry in enumerate(_list(metadata, "exclude", prompt))
    )
    return Task(tag, clauses, exclude)


def _clause(entry: Any, number: int, prompt: str) -> Clause:
    field = f"include[{number}]"
    label, count = _object(entry, field, prompt)
    color = _choice(entry["color"], COLORS, prompt, f"{field}.color") if "color" in entry else ""
    if "position" not in entry:
        return Clause(label, count, color)
    position = entry["position"]
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise _error(
            prompt,
            f"{field}.position",
            f"= {position!r} is not [relation, index of an earlier object]",
        )
    relation = _choice(position[0], RELATIONS, prompt, f"{field}.position[0]")
    if type(position[1]) is not int or not 0 <= position[1] < number:
        earlier = f"0 .. {number - 1}" if number else "the first has none"
        raise _error(
            prompt,
            f"{field}.position[1]",
            f"= {position[1]!r} is not the index of an earlier entry: {earlier}",
        )
    return Clause(label, count, color, relation, position[1])


def _object(entry: Any, field: str, prompt: str) -> tuple[int, int]:
    if not isinstance(entry, dict):
        raise _error(prompt, field, f"= {entry!r} is not an object with class and count")
    name = _choice(entry.get("class"), CLASSES, prompt, f"{field}.class")
    count = entry.get("count")
    if type(count) is not int or count < 1:
        raise _error(prompt, f"{field}.count", f"= {count!r} is not a whole number of at least 1")
    return CLASSES.index(name), count


def _list(metadata: dict[str, Any], field: str, prompt: str) -> list[Any]:
    value = metadata.get(field) or []
    if not isinstance(value, list | tuple):
        raise _error(prompt, field, f"= {value!r} is not a list")
    return list(value)


def _choice(value: Any, known: Sequence[str], prompt: str, field: str) -> str:
    if value in known:
        return str(value)
    if value is None:
        raise _error(prompt, field, "is missing")
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    raise _error(prompt, field, f"= {value!r} is unknown{hint}")


def _error(prompt: str, field: str, told: str) -> ValueError:
    return ValueError(f"geneval: the metadata of the prompt {prompt!r}: {field} {told}")


def select(detections: Sequence[Detection], threshold: float) -> Found:
    """By label, the detections scored above the threshold, surest first, at most MAX_OBJECTS of each."""
    found: Found = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            found.setdefault(detection.label, []).append(detection)
    return {label: kept[:MAX_OBJECTS] for label, kept in found.items()}


def to_color(task: Task, found: Found) -> list[Detection]:
    """The detections whose colour a verdict will ask for: where a clause has its count, the surest `count`."""
    asked = [
        clause
        for clause in task.include
        if clause.color and len(found.get(clause.label, [])) >= clause.count
    ]
    return [detection for clause in asked for detection in found[clause.label][: clause.count]]


def relations(first: Detection, second: Detection) -> set[str]:
    """Where the first lies from the second. The offset of the centres, less SLACK x the summed sizes on each axis, has
    a direction on an axis where it exceeds DIRECTION x the length of the whole offset; y grows downwards."""
    a, b = np.array(first.box).reshape(2, 2), np.array(second.box).reshape(2, 2)
    offset = a.mean(0) - b.mean(0)
    sizes = (a[1] - a[0]) + (b[1] - b[0])
    beyond = np.maximum(np.abs(offset) - SLACK * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    tests = {
        "left of": dx < -DIRECTION,
        "right of": dx > DIRECTION,
        "above": dy < -DIRECTION,
        "below": dy > DIRECTION,
    }
    return {name for name, holds in tests.items() if holds}


def nonstrict(task: Task, found: Found) -> bool:
    """The official metric: at least the count of everything asked, its colours and positions on the surest `count`
    objects, and fewer of everything excluded."""
    matched: list[list[Detection]] = []
    for clause in task.include:
        objects = found.get(clause.label, [])[: clause.count]
        holds = len(objects) == clause.count
        holds = holds and (not clause.color or all(d.color == clause.color for d in objects))
        holds = holds and (not clause.relation or _holds(clause, objects, matched[clause.target]))
        matched.append(objects if holds else [])
    few_enough = all(len(found.get(label, [])) < n for label, n in task.exclude)
    return all(matched) and few_enough


def _holds(clause: Clause, objects: list[Detection], targets: list[Detection]) -> bool:
    """Every object stands in the relation to every target; never, where the target itself was not found."""
    return bool(targets) and all(
        clause.relation in relations(o, t) for o in objects for t in targets
    )


def grade(task: Task, found: Found, scoring: str = "fixed") -> tuple[float, bool]:
    """(graded, strict). Strict is equality: exactly the count, all in their colour, in position; `exclude` is not read.

    graded is the mean of the clauses' scores: 1 - |asked - found| / asked, then colour, then position, each 0 where the
    one before it fails. "reference" scores as the public implementation does: the count may fall below 0; a failed
    count adds one 0 for colour and position together; a position is left out where the colour failed, is 0 AND 1 where
    it is wrong.
    """
    scores: list[float] = []
    matched: list[list[Detection]] = []
    for clause in task.include:
        objects = found.get(clause.label, [])
        own, holds = _grade_clause(clause, objects, matched, reference=scoring == "reference")
        scores.extend(own)
        matched.append(objects if holds else [])
    return float(np.mean(scores)), all(matched)


def _grade_clause(
    clause: Clause, objects: list[Detection], matched: list[list[Detection]], reference: bool
) -> tuple[list[float], bool]:
    count = 1 - abs(clause.count - len(objects)) / clause.count
    scores = [count if reference else max(0.0, count)]
    if len(objects) != clause.count:
        asked = bool(clause.color) + bool(clause.relation)
        return scores + [0.0] * (min(asked, 1) if reference else asked), False
    holds = True
    if clause.color:
        right = sum(d.color == clause.color for d in objects)
        scores.append(right / clause.count)
        holds = right == clause.count
    if not clause.relation or (reference and not holds):
        return scores, holds
    targets = matched[clause.target]
    in_place = holds and _holds(clause, objects, targets)
    wrong = [0.0, 1.0] if reference and targets else [0.0]
    return scores + ([1.0] if in_place else wrong), in_place


def judge(task: Task, found: Found, scoring: str = "fixed") -> Verdict:
    """The verdict on one image; `found` holds colours for what `to_color` lists."""
    graded, strict = grade(task, found, scoring)
    return Verdict(graded, float(strict), float(nonstrict(task, found)))
