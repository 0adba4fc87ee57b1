"""Scorers for the doctor: one of them is well, each other has another defect."""

from __future__ import annotations

import io
import os
import time

import numpy as np
from PIL import Image

from reward_models import Scores
from reward_models.check import Check, golden_cases
from reward_models.loading import Source
from reward_models.pickscore_rank import mean_ranks


class Undeclared:
    """The fewer bytes an image takes as JPEG, the higher its score; the lower if `sign` is -1."""

    def __init__(self, sign: int = 1, path: str = "") -> None:
        self.sign = sign

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        sizes = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            sizes.append(buffer.tell() / 1000)
        return Scores(-self.sign * np.array(sizes, dtype=np.float32))


class Jpeg(Undeclared):
    doctor = Check(cases=lambda: golden_cases(side=64, plain=2, text=1))


class Rank(Jpeg):
    """The rank of the score in its group."""

    scores_groups = True

    def __call__(  # type: ignore[override]
        self, images: np.ndarray, prompts: list[str], metadata: list[dict], groups: np.ndarray
    ) -> Scores:
        assert (groups == groups[0]).all()
        return Scores(mean_ranks(super().__call__(images, prompts, metadata).score))


class Blind(Jpeg):
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores(np.array([np.nan, 1.0, 1.0], dtype=np.float32))


class Explains(Jpeg):
    """Gives the scores of Jpeg, or none, and a reason."""

    def __init__(self, silent: bool) -> None:
        super().__init__()
        self.silent = silent

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        score = super().__call__(images, prompts, metadata).score
        return Scores(score * np.float32(np.nan) if self.silent else score, reason="it is dark")


class Dies(Jpeg):
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        os._exit(11)


class Hungry(Jpeg):
    """Needs 30 MB per image."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        memory = np.ones((len(images), 30 * 2**20), dtype=np.uint8)
        time.sleep(0.1)  # memory is measured every 5 ms, if the measuring thread gets a turn
        scores = super().__call__(images, prompts, metadata)
        assert memory.all()
        return scores


class Absent(Undeclared):
    doctor = Check(packages=("numpy", "no_such_package"), extra="ocr")


class Plain(Undeclared):
    doctor = Check(packages=("no_such_package",))


class Heavy(Undeclared):
    doctor = Check(
        weights=(Source("heavy", "someone/heavy", "3.9 GB", ("config.json", "model.bin")),)
    )


class Judge(Undeclared):
    doctor = Check(needs="needs a judge: an OpenAI-compatible endpoint")
