"""Scorers that tell the doctor of themselves, each in another condition."""

from __future__ import annotations

import io
import os
import time

import numpy as np
from PIL import Image

from reward_models import Scores
from reward_models.check import Case, Check, Weights, golden_images


class Jpeg:
    """The fewer bytes an image takes, the higher its score; `sign` -1 turns that round."""

    def __init__(self, sign: int = 1, path: str = "") -> None:
        self.sign = sign

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        sizes = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            sizes.append(buffer.tell() / 1000)
        return Scores(-self.sign * np.array(sizes, dtype=np.float32))


class Unsaid(Jpeg):
    """Without an entry in CHECKS."""


class Blind(Jpeg):
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores(np.array([1.0, np.nan, 1.0], dtype=np.float32))


class Dies(Jpeg):
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        os._exit(11)


class Hungry(Jpeg):
    """Needs 30 MB an image."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        held = np.ones((len(images), 30 * 2**20), dtype=np.uint8)
        time.sleep(0.1)  # memory is looked at every 5 ms, where the looking thread gets a turn
        scores = super().__call__(images, prompts, metadata)
        assert held.all()
        return scores


def _by_size() -> list[Case]:
    images = golden_images(64)
    return [
        Case(name, images[name], "", rank) for rank, name in enumerate(("noise", "text", "plain"))
    ]


CHECKS = {
    "Jpeg": Check(cases=_by_size),
    "Blind": Check(cases=_by_size),
    "Dies": Check(cases=_by_size),
    "Hungry": Check(cases=_by_size),
    "Absent": Check(packages=("numpy", "no_such_package"), extra="ocr"),
    "Plain": Check(packages=("no_such_package",)),
    "Heavy": Check(
        cases=_by_size, weights=(Weights("someone/heavy", 3.9, files=("config.json", "model.bin")),)
    ),
    "Judge": Check(cases=_by_size, needs="needs a judge: an OpenAI-compatible endpoint"),
}
Absent = Plain = Heavy = Judge = Jpeg
