"""Draw a caption: 48 x 48, light ground, solid shapes apart from each other and the border."""

from __future__ import annotations

from typing import Any

import numpy as np

from reward_models.shapes import COLORS, RELATIONS, inside

SIZE = 48
GAP = 3  # pixels between objects, and between an object and the border
SUBSAMPLES = 4  # per pixel and axis, for smooth edges
HALF_SIZE = {
    1: (8.0, 14.0),
    2: (7.0, 10.0),
    3: (6.0, 8.0),
    4: (5.5, 7.5),
}  # pixels, by number of objects
TRIES = 200


def render(metadata: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """One image (48, 48, 3) uint8 of the metadata's objects and relation, laid out at random."""
    objects = [o for o in metadata["objects"] for _ in range(o["count"])]
    image = np.full((SIZE, SIZE, 3), rng.uniform(0.90, 0.97), dtype=np.float32)
    for thing, (x, y, half) in zip(
        objects, _layout(len(objects), metadata.get("relation"), rng), strict=True
    ):
        box, alpha = _coverage(thing["shape"], x, y, half)
        image[box] = image[box] * (1 - alpha) + alpha * np.asarray(
            COLORS[thing["color"]], dtype=np.float32
        )
    return (image * 255).round().astype(np.uint8)


def _layout(
    n: int, relation: str | None, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Centres and half sizes of n boxes that keep their distance; two stand in the relation."""
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(TRIES):
            half = rng.uniform(*HALF_SIZE[n])
            low, high = GAP + half, SIZE - GAP - half
            box = (rng.uniform(low, high), rng.uniform(low, high), half)
            if all(_apart(box, other) for other in placed):
                placed.append(box)
            if len(placed) == n:
                break
        if len(placed) == n and (relation is None or _related(placed[0], placed[1], relation)):
            return placed


def _apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= a[2] + b[2] + GAP


def _related(a: tuple[float, float, float], b: tuple[float, float, float], relation: str) -> bool:
    offset = np.array([a[0] - b[0], a[1] - b[1]])
    # Within 35 degrees of the axis: clear of the scorer's limit of 45.
    return bool(
        offset @ np.array(RELATIONS[relation]) >= np.cos(np.deg2rad(35)) * np.linalg.norm(offset)
    )


def _coverage(
    shape: str, x: float, y: float, half: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The bounding box (rows, columns), and the share (h, w, 1) of each pixel inside the shape."""
    rows, v = _fine(y, half)
    columns, u = _fine(x, half)
    hits = inside(shape, *np.meshgrid(u, v, indexing="xy")).astype(np.float32)
    coarse = hits.reshape(len(v) // SUBSAMPLES, SUBSAMPLES, len(u) // SUBSAMPLES, SUBSAMPLES).mean(
        axis=(1, 3)
    )
    return (rows, columns), coarse[..., None]


def _fine(center: float, half: float) -> tuple[slice, np.ndarray]:
    """The pixels that [center - half, center + half] touches, and their subsamples in box units."""
    start, stop = int(np.floor(center - half)), int(np.ceil(center + half))
    fine = start + (np.arange((stop - start) * SUBSAMPLES) + 0.5) / SUBSAMPLES
    return slice(start, stop), (fine - center) / half
