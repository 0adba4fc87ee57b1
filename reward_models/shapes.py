"""The embedded world's scorer: does a 48 x 48 image show the coloured shapes of its caption?

It reads pixels alone. Those that differ from the background form connected components
(scipy.ndimage); the colour of a component is the nearest of six, its shape that of the four
templates with the best intersection over union (IoU). Colours and shapes are defined here, because
a scorer never imports the trainer; the renderer draws by these definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from reward_models.base import Metadata, Scores
from reward_models.check import Case, Check, golden_cases

COLORS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.13, 0.60, 0.25),
    "blue": (0.15, 0.30, 0.86),
    "yellow": (0.95, 0.78, 0.10),
    "purple": (0.58, 0.22, 0.75),
    "black": (0.10, 0.10, 0.10),
}
SHAPES = ("circle", "square", "triangle", "cross")
# (du, dv) points from the second object to the first; v grows downwards.
RELATIONS = {
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
}

FOREGROUND = 0.25  # RGB distance from the background at which a pixel belongs to an object
MIN_AREA = 12  # pixels; smaller specks are not objects
COLOR_RIGHT, COLOR_WRONG = 0.15, 0.50  # RGB distances at which the colour part is 1 and 0
COLOR_LIMIT = 0.35  # RGB distance beyond which a colour is none of the six
IOU_WRONG, IOU_RIGHT = 0.45, 0.80  # IoUs with the template at which the shape part is 0 and 1
IOU_LIMIT = 0.65  # IoU below which a shape is none of the four
AXIS = np.cos(np.pi / 4)  # a relation holds within 45 degrees of its axis

PARTS = ("count", "color", "shape", "position")


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points of the box [-1, 1]^2 (u right, v down) the shape covers; bool, shaped like u."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "square":
        return (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if shape == "triangle":
        return (np.abs(u) <= (v + 1) / 2) & (np.abs(v) <= 1)
    if shape == "cross":
        return (np.minimum(np.abs(u), np.abs(v)) <= 0.36) & (np.maximum(np.abs(u), np.abs(v)) <= 1)
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Component:
    """One object. center: (x, y) in pixels. color: RGB in [0, 1]. iou: by shape."""

    center: np.ndarray
    color: np.ndarray
    iou: dict[str, float]

    def color_distance(self, name: str) -> float:
        return float(np.linalg.norm(self.color - COLORS[name]))

    def is_a(self, color: str, shape: str) -> bool:
        nearest = min(COLORS, key=self.color_distance)
        best = max(self.iou, key=self.iou.__getitem__)
        close = self.color_distance(color) <= COLOR_LIMIT and self.iou[shape] >= IOU_LIMIT
        return close and nearest == color and best == shape


def components(image: np.ndarray) -> list[Component]:
    """The objects of one image (H, W, 3) uint8; the median of its border is the background."""
    pixels = image.astype(np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    foreground = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1) > FOREGROUND
    labels, _ = ndimage.label(foreground)
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    masks = [(labels[box] == number, box) for number, box in boxes]
    return [_component(m, pixels[box], box) for m, box in masks if m.sum() >= MIN_AREA]


def _component(mask: np.ndarray, pixels: np.ndarray, box: tuple[slice, slice]) -> Component:
    """The object that covers `mask` of the pixels in the box."""
    height, width = mask.shape
    v, u = np.meshgrid(_centers(height), _centers(width), indexing="ij")
    iou = {}
    for shape in SHAPES:
        template = inside(shape, u, v)
        iou[shape] = float((mask & template).sum() / (mask | template).sum())
    core = ndimage.binary_erosion(mask)  # edge pixels are mixed with the background
    color = np.median(pixels[core if core.any() else mask], axis=0)
    center = np.array([box[1].start + width / 2, box[0].start + height / 2])
    return Component(center, color, iou)


def _centers(n: int) -> np.ndarray:
    """The centres of n pixels that cover [-1, 1]."""
    return (np.arange(n) + 0.5) / n * 2 - 1


def _ramp(value: float, zero: float, one: float) -> float:
    """Linear from 0 at `zero` to 1 at `one`, constant beyond."""
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))


def judge(image: np.ndarray, metadata: Metadata) -> dict[str, float]:
    """The parts in [0, 1]: count, color, shape, and position if the metadata asks for one.

    Also graded, the mean of the parts, and exact, 0 or 1. metadata: {"objects": [{"color", "shape",
    "count"}, ...]} and, for two objects, optionally {"relation": "above"}.
    """
    asked = [
        (o["color"], o["shape"]) for o in metadata["objects"] for _ in range(o.get("count", 1))
    ]
    shown = components(image)
    # Matched by distance and IoU: the parts saturate, so a circle and a square of one colour tie.
    cost = np.array([[x.color_distance(c) - x.iou[s] for x in shown] for c, s in asked])
    rows, columns = linear_sum_assignment(cost.reshape(len(asked), len(shown)))
    pairs = [(asked[r], shown[c]) for r, c in zip(rows, columns, strict=True)]
    colors = [_ramp(x.color_distance(c), COLOR_WRONG, COLOR_RIGHT) for (c, _), x in pairs]
    shapes = [_ramp(x.iou[s], IOU_WRONG, IOU_RIGHT) for (_, s), x in pairs]
    # Surplus objects dilute colour and shape: drawing everything twice must not be graded well.
    objects = max(len(asked), len(shown))
    parts = {
        "count": max(0.0, 1 - abs(len(shown) - len(asked)) / len(asked)),
        "color": sum(colors) / objects,
        "shape": sum(shapes) / objects,
    }
    exact = len(shown) == len(asked) and all(x.is_a(*wanted) for wanted, x in pairs)
    if "relation" in metadata:
        parts["position"], holds = _relation(metadata["relation"], [x for _, x in pairs])
        exact = exact and holds
    return {**parts, "graded": float(np.mean(list(parts.values()))), "exact": float(exact)}


def _mistake(metadata: Metadata) -> str:
    """What is wrong with `judge`'s metadata, in words; "" for nothing."""
    objects = metadata["objects"]
    if not isinstance(objects, list) or not objects:
        return f"objects = {objects!r} must be a list with at least one object"
    for thing in objects:
        for key, known in (("color", tuple(COLORS)), ("shape", tuple(SHAPES))):
            if not isinstance(thing, dict) or thing.get(key) not in known:
                return f"an object is {thing!r}; its {key} must be one of {', '.join(known)}"
        count = thing.get("count", 1)
        if not isinstance(count, int) or count < 1:
            return f"count = {count!r} must be a whole number from 1 on"
    if "relation" not in metadata:
        return ""
    relation = metadata["relation"]
    if not isinstance(relation, str) or relation not in RELATIONS:
        return f"relation = {relation!r} must be one of {', '.join(RELATIONS)}"
    asked = sum(thing.get("count", 1) for thing in objects)
    return "" if asked == 2 else f"a relation is between two objects; there are {asked}"


def _relation(name: str, matched: list[Component]) -> tuple[float, bool]:
    """The position part, and whether the first object stands in the relation to the second."""
    if len(matched) < 2:
        return 0.0, False
    first, second = matched  # in the order of the metadata, as linear_sum_assignment keeps it
    offset = first.center - second.center
    length = max(float(np.linalg.norm(offset)), 1e-6)
    cosine = float(offset @ np.array(RELATIONS[name]) / length)
    return _ramp(cosine, -AXIS, AXIS), cosine >= AXIS


def _golden_cases() -> list[Case]:
    v, u = np.meshgrid(_centers(48) * 2, _centers(48) * 2, indexing="ij")
    red = np.array(COLORS["red"]) * 255
    circle = np.where(inside("circle", u, v)[..., None], red, 240).astype(np.uint8)
    prompt, metadata = "a red circle", {"objects": [{"color": "red", "shape": "circle"}]}
    return [Case("circle", circle, prompt, 1, metadata), *golden_cases(prompt, metadata, side=48)]


class ShapesScorer:
    """score = exact_share x exact + (1 - exact_share) x graded, in [0, 1].

    extras: exact, graded and the parts.
    """

    doctor = Check(cases=_golden_cases)

    def __init__(self, exact_share: float = 0.5) -> None:
        if not 0 <= exact_share <= 1:
            raise ValueError(f"shapes: exact_share = {exact_share} must lie in [0, 1]")
        self.exact_share = exact_share

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError for the first prompt whose metadata `judge` cannot read."""
        for prompt, data in zip(prompts, metadata, strict=True):
            if "objects" not in data:
                raise ValueError(
                    f"shapes: the metadata of {prompt!r} names no objects; got {sorted(data)}"
                )
            if mistake := _mistake(data):
                raise ValueError(f"shapes: the metadata of {prompt!r}: {mistake}")

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        self.check(prompts, metadata)
        judged = [judge(image, data) for image, data in zip(images, metadata, strict=True)]
        extras = {
            name: np.array([j.get(name, np.nan) for j in judged], dtype=np.float32)
            for name in ("exact", "graded", *PARTS)
        }
        score = self.exact_share * extras["exact"] + (1 - self.exact_share) * extras["graded"]
        return Scores(score.astype(np.float32), extras)
