"""What a scorer declares for `python -m reward_models.doctor`.

A scorer's class declares it as the attribute `doctor = Check(...)`. Every field has a default: a
scorer that declares nothing only has to give each golden image a finite score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reward_models.base import Metadata

if TYPE_CHECKING:
    from reward_models.loading import Source

GOLDEN_TEXT = "HELLO"


@dataclass(frozen=True)
class Case:
    """An image (H, W, 3) uint8 with its prompt. It must score more than any case of lower rank."""

    name: str
    image: np.ndarray
    prompt: str
    rank: int
    metadata: Metadata = field(default_factory=dict)


def golden_images(side: int = 512) -> dict[str, np.ndarray]:
    """text, a black word on white; plain, all red; noise, uniform; each (side, side, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    text = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size=side // 6)
    center = (side / 2, side / 2)
    ImageDraw.Draw(text).text(center, GOLDEN_TEXT, fill="black", font=font, anchor="mm")
    return {
        "text": np.asarray(text),
        "plain": np.full((side, side, 3), (220, 30, 30), dtype=np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8),
    }


def golden_cases(
    prompt: str = "a photo", metadata: Metadata | None = None, side: int = 512, **ranks: int
) -> list[Case]:
    """The golden images with one prompt, ranked by name; the rank of others is 0."""
    return [
        Case(name, image, prompt, ranks.get(name, 0), metadata or {})
        for name, image in golden_images(side).items()
    ]


def matching_cases() -> list[Case]:
    """The golden images with a prompt for the text, which must score best."""
    return golden_cases(f'the word "{GOLDEN_TEXT}" in black letters on a white background', text=1)


@dataclass(frozen=True)
class Check:
    """packages: those that the scorer imports. extra: the extra of setup.py that installs them.

    weights: those that it loads from the hub. needs: in words, what else it needs, such as a
    server; then it is only built with options. cases: golden images and their order.
    options: of the scorer, for the check.
    """

    packages: tuple[str, ...] = ()
    extra: str = ""
    weights: tuple[Source, ...] = ()
    needs: str = ""
    cases: Callable[[], Sequence[Case]] = golden_cases
    options: Mapping[str, Any] = field(default_factory=dict)
