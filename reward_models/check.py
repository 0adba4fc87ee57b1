"""What a scorer tells `python -m reward_models.doctor` about itself.

A module offers it as `CHECKS = {"name": Check(...)}`, by the registered name of the scorer or the name of its class.
Every field has a default; a scorer without an entry is only asked for a finite score of each golden image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reward_models.base import Metadata

GOLDEN_TEXT = "HELLO"


@dataclass(frozen=True)
class Weights:
    """A hub repository that the scorer loads.

    files: those it cannot do without; fetch: all that it reads, of which some may be missing, `files` where none are
    named; gigabytes: of these.
    """

    repo: str
    gigabytes: float
    files: tuple[str, ...]
    fetch: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What fetches them: the whole repository may hold the weights in three formats."""
        return " ".join(["hf download", self.repo, *(self.fetch or self.files)])


@dataclass(frozen=True)
class Case:
    """An image (H, W, 3) uint8 and its prompt. A case must score more than every case of lower rank."""

    name: str
    image: np.ndarray
    prompt: str
    rank: int
    metadata: Metadata = field(default_factory=dict)


def default_cases() -> list[Case]:
    """The golden images with one prompt and no order."""
    return [Case(name, image, "a photo", rank=0) for name, image in golden_images().items()]


def matching_cases() -> list[Case]:
    """The golden images with a prompt that the first one fits, and must score best for."""
    prompt = f'the word "{GOLDEN_TEXT}" in black letters on a white background'
    return [
        Case(name, image, prompt, rank=int(name == "text"))
        for name, image in golden_images().items()
    ]


@dataclass(frozen=True)
class Check:
    """packages: what it imports; extra: of setup.py, that installs them; weights: what it loads from the hub.

    needs: other things it cannot do without, such as a server, in words; a scorer with any is not built unless options
    are given. cases: golden images and their order. options: of the scorer, for the check.
    """

    packages: tuple[str, ...] = ()
    extra: str = ""
    weights: tuple[Weights, ...] = ()
    needs: str = ""
    cases: Callable[[], Sequence[Case]] = default_cases
    options: Mapping[str, Any] = field(default_factory=dict)


def golden_images(side: int = 512) -> dict[str, np.ndarray]:
    """A black word on white, a plain red, and uniform noise, by the names text, plain, noise; (side, side, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    text = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size=side // 6)
    ImageDraw.Draw(text).text(
        (side / 2, side / 2), GOLDEN_TEXT, fill="black", font=font, anchor="mm"
    )
    return {
        "text": np.asarray(text),
        "plain": np.full((side, side, 3), (220, 30, 30), dtype=np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8),
    }
