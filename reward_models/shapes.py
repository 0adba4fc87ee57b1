"""The embedded world's scorer: does a 48 x 48 image show the coloured shapes that its caption asks for?

It looks at pixels alone: what differs from the ground falls into connected components (scipy.ndimage); a component's
colour is the nearest of six, its shape the best intersection over union with four templates. The definitions of the
colours and shapes live here, because a scorer never imports the trainer; the renderer draws to them.
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

FOREGROUND = 0.25  # distance from the ground, in RGB units, at which a pixel belongs to an object
MIN_AREA = 12  # pixels; smaller specks are not objects
COLOR_SURE, COLOR_LOST = 0.15, 0.50  # RGB distance at which the colour part is 1 and 0
COLOR_LIMIT = 0.35  # and beyond which a colour is none of the six
IOU_LOST, IOU_SURE = 0.45, 0.80  # template IoU at which the shape part is 0 and 1
IOU_LIMIT = 0.65
AXIS = np.cos(np.pi / 4)  # a relation holds within 45 degrees of its axis

PARTS = ("count", "color", "shape", "position")


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points of the bounding box [-1, 1]^2 (u right, v down) belong to the shape; bool, shape of u and v."""
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
    """One connected object of an image: centre (x, y) in pixels, RGB colour in [0, 1], template IoU by shape."""

    center: np.ndarray
    color: np.ndarray
    iou: dict[str, float]

    def color_distance(self, name: str) -> float:
        return float(np.linalg.norm(self.color - COLORS[name]))

    def is_a(self, color: str, shape: str) -> bool:
        nearest = min(COLORS, key=self.color_distance)
        best = max(self.iou, key=self.iou.__getitem__)
        sure = self.color_distance(color) <= COLOR_LIMIT and self.iou[shape] >= IOU_LIMIT
        return sure and nearest == color and best == shape


def components(image: np.ndarray) -> list[Component]:
    """The objects of one image (H, W, 3) uint8, against the median of its border as ground."""
    pixels = image.astype(np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mask = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1) > FOREGROUND
    labels, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[box] == number
        if own.sum() >= MIN_AREA:
            found.append(_component(own, pixels[box], box))
    return found


def _component(own: np.ndarray, pixels: np.ndarray, box: tuple[slice, slice]) -> Component:
    height, width = own.shape
    v, u = np.meshgrid(_centers(height), _centers(width), indexing="ij")
    iou = {}
    for shape in SHAPES:
        template = inside(shape, u, v)
        iou[shape] = float((own & template).sum() / (own | template).sum())
    core = ndimage.binary_erosion(own)  # edge pixels are mixed with the ground
    color = np.median(pixels[core if core.any() else own], axis=0)
    center = np.array([box[1].start + width / 2, box[0].start + height / 2])
    return Component(center, color, iou)


def _centers(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n * 2 - 1


def _ramp(value: float, lost: float, sure: float) -> float:
    return float(np.clip((value - lost) / (sure - lost), 0.0, 1.0))


def judge(image: np.ndarray, metadata: Metadata) -> dict[str, float]:
    """Parts in [0, 1]: count, color, shape, and position where one is asked; `graded`, their mean; `exact`, 0 or 1.

    metadata: {"objects": [{"color", "shape", "count"}, ...]} and, for two objects, optionally {"relation": "above"}.
    """
    wanted = [
        (o["color"], o["shape"]) for o in metadata["objects"] for _ in range(o.get("count", 1))
    ]
    found = components(image)
    # Matched by the raw distance and IoU: the parts saturate, and a circle and a square of one colour would tie.
    cost = np.array([[f.color_distance(c) - f.iou[s] for f in found] for c, s in wanted])
    rows, columns = linear_sum_assignment(cost.reshape(len(wanted), len(found)))
    pairs = [(wanted[r], found[c]) for r, c in zip(rows, columns, strict=True)]
    # Surplus objects dilute colour and shape: drawing everything twice must not be a cheap way to be graded well.
    objects = max(len(wanted), len(found))
    parts = {
        "count": max(0.0, 1 - abs(len(found) - len(wanted)) / len(wanted)),
        "color": sum(_ramp(f.color_distance(c), COLOR_LOST, COLOR_SURE) for (c, _), f in pairs)
        / objects,
        "shape": sum(_ramp(f.iou[s], IOU_LOST, IOU_SURE) for (_, s), f in pairs) / objects,
    }
    exact = len(found) == len(wanted) and all(f.is_a(*w) for w, f in pairs)
    if "relation" in metadata:
        parts["position"], holds = _relation(metadata["relation"], [f for _, f in pairs])
        exact = exact and holds
    return {**parts, "graded": float(np.mean(list(parts.values()))), "exact": float(exact)}


def _relation(name: str, matched: list[Component]) -> tuple[float, bool]:
    """The position part and whether the first object stands in the relation to the second."""
    if len(matched) < 2:
        return 0.0, False
    first, second = (
        matched  # linear_sum_assignment returns rows, the objects asked for, in their order
    )
    offset = first.center - second.center
    cosine = float(offset @ np.array(RELATIONS[name]) / max(float(np.linalg.norm(offset)), 1e-6))
    return _ramp(cosine, -AXIS, AXIS), cosine >= AXIS


def _golden_cases() -> list[Case]:
    v, u = np.meshgrid(_centers(48) * 2, _centers(48) * 2, indexing="ij")
    red = np.array(COLORS["red"]) * 255
    circle = np.where(inside("circle", u, v)[..., None], red, 240).astype(np.uint8)
    prompt, metadata = "a red circle", {"objects": [{"color": "red", "shape": "circle"}]}
    return [
        Case("circle", circle, prompt, rank=1, metadata=metadata),
        *golden_cases(prompt, metadata, side=48),
    ]


class ShapesScorer:
    """score = exact_share x exact + (1 - exact_share) x graded, in [0, 1]; extras: exact, graded and the parts."""

    doctor = Check(cases=_golden_cases)

    def __init__(self, exact_share: float = 0.5) -> None:
        if not 0 <= exact_share <= 1:
            raise ValueError(f"shapes: exact_share = {exact_share} must lie in [0, 1]")
        self.exact_share = exact_share

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError for the first prompt whose metadata names no objects."""
        for prompt, data in zip(prompts, metadata, strict=True):
            if "objects" not in data:
                raise ValueError(
                    f"shapes: the metadata of {prompt!r} names no objects; got {sorted(data)}"
                )

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        self.check(prompts, metadata)
        judged = [judge(image, data) for image, data in zip(images, metadata, strict=True)]
        extras = {
            name: np.array([j.get(name, np.nan) for j in judged], dtype=np.float32)
            for name in ("exact", "graded", *PARTS)
        }
        score = self.exact_share * extras["exact"] + (1 - self.exact_share) * extras["graded"]
        return Scores(score.astype(np.float32), extras)
