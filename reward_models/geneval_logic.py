"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) on detections: no model, no image.

The metadata of a prompt asks for objects by class and count, possibly with a colour or a position,
and may exclude others: {"tag": "position", "prompt": ..., "include": [{"class": "cat", "count": 1},
{"class": "dog", "count": 1, "color": "red", "position": ["left of", 0]}],
"exclude": [{"class": "cat", "count": 2}]}.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
SCORINGS = ("fixed", "reference")
# COCO's 80 classes in COCO's order, with GenEval's names; COCO says mouse, remote and keyboard.
_CLASSES = """
person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|
parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|
handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|
skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|banana|apple|
sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|
toilet|tv|laptop|computer mouse|tv remote|computer keyboard|cell phone|microwave|oven|toaster|sink|
refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush
"""
CLASSES = tuple(_CLASSES.replace("\n", "").split("|"))

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # scores of a detection; the second for tag counting
MAX_OBJECTS = 16  # detections kept of a class, those of the highest scores
SLACK = 0.1  # share of both objects' sizes that an offset must exceed
DIRECTION = 0.5  # share of the whole offset that a relation's axis must have


@dataclass
class Detection:
    """One object of an image.

    label: a COCO-80 index. score: in [0, 1]. box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
    mask: (H, W) bool, if the detector gives one. color: "" until classified.
    """

    label: int
    score: float
    box: tuple[float, ...]
    mask: np.ndarray | None = None
    color: str = ""


ByLabel = dict[int, list[Detection]]  # the detections of an image, highest scores first


@dataclass(frozen=True)
class Clause:
    """Asks for `count` objects of class `label`, of a color and in a relation unless these are "".

    target: the index of the clause to whose objects the relation is.
    """

    label: int
    count: int
    color: str = ""
    relation: str = ""
    target: int = 0


@dataclass(frozen=True)
class Task:
    """What a prompt asks for. exclude: (label, n) asks for fewer than n objects of the class."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[tuple[int, int], ...] = ()

    @property
    def threshold(self) -> float:
        return COUNTING_THRESHOLD if self.tag == "counting" else THRESHOLD


class Verdict(NamedTuple):
    """graded: the training reward, in [0, 1] with "fixed" scoring. strict, nonstrict: 0 or 1."""

    graded: float
    strict: float
    nonstrict: float


def parse(metadata: dict[str, Any], prompt: str) -> Task:
    """Raises ValueError, naming prompt and field, for a missing, unknown or impossible value."""
    try:
        tag = _choice(metadata.get("tag"), TAGS, "tag")
        include, exclude = _list(metadata, "include"), _list(metadata, "exclude")
        if not include:
            raise ValueError("include is missing or empty: it lists the objects of the prompt")
        clauses = tuple(_clause(entry, number) for number, entry in enumerate(include))
        limits = (_object(entry, f"exclude[{number}]") for number, entry in enumerate(exclude))
        return Task(tag, clauses, tuple(limits))
    except ValueError as error:
        raise ValueError(f"geneval: the metadata of the prompt {prompt!r}: {error}") from error


def _clause(entry: Any, number: int) -> Clause:
    field = f"include[{number}]"
    label, count = _object(entry, field)
    color = _choice(entry["color"], COLORS, f"{field}.color") if "color" in entry else ""
    if "position" not in entry:
        return Clause(label, count, color)
    position, field = entry["position"], f"{field}.position"
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise ValueError(f"{field} = {position!r} is not [relation, index of an earlier object]")
    relation, target = position
    _choice(relation, RELATIONS, f"{field}[0]")
    if type(target) is not int or not 0 <= target < number:
        earlier = f"0 .. {number - 1}" if number else "the first has none"
        raise ValueError(f"{field}[1] = {target!r} is not the index of an earlier entry: {earlier}")
    return Clause(label, count, color, relation, target)


def _object(entry: Any, field: str) -> tuple[int, int]:
    if not isinstance(entry, dict):
        raise ValueError(f"{field} = {entry!r} is not an object with class and count")
    name, count = _choice(entry.get("class"), CLASSES, f"{field}.class"), entry.get("count")
    if type(count) is not int or count < 1:
        raise ValueError(f"{field}.count = {count!r} is not a whole number of at least 1")
    return CLASSES.index(name), count


def _list(metadata: dict[str, Any], field: str) -> list[Any]:
    value = metadata.get(field) or []
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field} = {value!r} is not a list")
    return list(value)


def _choice(value: Any, known: Sequence[str], field: str) -> str:
    if value in known:
        return str(value)
    if value is None:
        raise ValueError(f"{field} is missing")
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"{field} = {value!r} is unknown; {hint}")


def select(detections: Sequence[Detection], threshold: float) -> ByLabel:
    """By label, copies of the detections scored above the threshold, at most MAX_OBJECTS each."""
    by_label: ByLabel = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            by_label.setdefault(detection.label, []).append(replace(detection))
    return {label: same_class[:MAX_OBJECTS] for label, same_class in by_label.items()}


def to_color(task: Task, by_label: ByLabel) -> list[Detection]:
    """The detections whose colour a verdict reads: the best of each clause with enough objects."""
    chosen: list[Detection] = []
    for clause in task.include:
        objects = by_label.get(clause.label, [])[: clause.count]
        if clause.color and len(objects) == clause.count:
            chosen += objects
    return chosen


def relations(first: Detection, second: Detection) -> set[str]:
    """The relations in which the first stands to the second.

    The offset of the centres, less SLACK times the summed sizes on each axis, gives the direction
    on every axis where it exceeds DIRECTION times the length of the whole offset.
    """
    a, b = np.array(first.box).reshape(2, 2), np.array(second.box).reshape(2, 2)
    offset = a.mean(0) - b.mean(0)
    sizes = (a[1] - a[0]) + (b[1] - b[0])
    beyond = np.maximum(np.abs(offset) - SLACK * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)  # y grows downwards
    shares = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, share in shares.items() if share > DIRECTION}


def nonstrict(task: Task, by_label: ByLabel) -> bool:
    """The official metric: at least `count` objects for every clause, the best `count` of them in
    its colour and position, and fewer than the limit of everything excluded.
    """
    matched: list[list[Detection]] = []
    for clause in task.include:
        objects = by_label.get(clause.label, [])[: clause.count]
        holds = len(objects) == clause.count
        holds = holds and (not clause.color or all(d.color == clause.color for d in objects))
        holds = holds and (not clause.relation or _placed(clause, objects, matched))
        matched.append(objects if holds else [])
    few_enough = all(len(by_label.get(label, [])) < n for label, n in task.exclude)
    return all(matched) and few_enough


def _placed(clause: Clause, objects: list[Detection], matched: list[list[Detection]]) -> bool:
    """Whether every object stands in the relation to every target; False without targets."""
    targets = matched[clause.target]
    return bool(targets) and all(
        clause.relation in relations(d, target) for d in objects for target in targets
    )


def grade(task: Task, by_label: ByLabel, scoring: str = "fixed") -> tuple[float, bool]:
    """(graded, strict). strict: exactly `count` objects for every clause, all in its colour and
    position; `exclude` is not read.

    graded: the mean over the clauses' scores, which are 1 - |asked - shown| / asked for the count,
    at least 0, then those for colour and position, each 0 if the one before fails. "reference"
    scores as the public implementation does: a count may fall below 0, a failed count adds one 0
    for colour and position together, a position is left out if the colour failed, and is 0 AND 1
    if it is wrong.
    """
    scores: list[float] = []
    matched: list[list[Detection]] = []
    for clause in task.include:
        objects = by_label.get(clause.label, [])
        parts, holds = _grade_clause(clause, objects, matched, reference=scoring == "reference")
        scores.extend(parts)
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
    placed = holds and _placed(clause, objects, matched)
    wrong = [0.0, 1.0] if reference and matched[clause.target] else [0.0]
    return scores + ([1.0] if placed else wrong), placed


def judge(task: Task, by_label: ByLabel, scoring: str = "fixed") -> Verdict:
    """The verdict on one image, whose detections that `to_color` lists have their colours."""
    graded, strict = grade(task, by_label, scoring)
    return Verdict(graded, float(strict), float(nonstrict(task, by_label)))
