"""GenEval: are the objects, counts, colours and positions that the prompt asks for in the image?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from reward_models.base import Metadata, Scores
from reward_models.check import Case, Check, Weights, golden_images
from reward_models.clip import load_open_clip
from reward_models.geneval_detector import SIDE, ColorClassifier, load_detector
from reward_models.geneval_detector import WEIGHTS as DETECTOR_WEIGHTS
from reward_models.geneval_logic import (
    SCORINGS,
    TAGS,
    Detection,
    Found,
    Task,
    judge,
    parse,
    select,
    to_color,
)
from reward_models.loading import Source

COLOR_WEIGHTS = Source(
    "geneval",
    "timm/vit_large_patch14_clip_224.openai",
    "1.7 GB",
    file="open_clip_model.safetensors",
    option="color_path",
)
Detector = Callable[[np.ndarray], list[list[Detection]]]
Colors = Callable[[Sequence[np.ndarray], Sequence[Detection]], list[str]]


class GenEval:
    """score: the graded training reward, in [0, 1] when scored "fixed".

    extras: strict and nonstrict (the official metric), 0 or 1; "tag/counting" and "strict/counting" and so on, the same
    for the rows of that tag, NaN for the others. GenEval's overall score is the macro mean of the six of nonstrict.

    scoring: "fixed", or "reference" with the public implementation's quirks (see `geneval_logic.grade`).
    path: folder or hub id of the Mask2Former; color_path: the CLIP's checkpoint file, a folder with it or a hub id;
    color_model: its name in open_clip; side: pixels that the shorter side of an image is brought to before the detector
    looks, 800 in the benchmark; detector, colors: these two, ready made.
    """

    macros: ClassVar[dict[str, tuple[str, ...]]] = {
        "overall": tuple(f"tag/{tag}" for tag in TAGS),
        "overall_strict": tuple(f"strict/{tag}" for tag in TAGS),
    }

    def __init__(
        self,
        scoring: str = "fixed",
        path: str = "",
        color_path: str = "",
        color_model: str = "ViT-L-14-quickgelu",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 8,
        side: int = SIDE,
        detector: Detector | None = None,
        colors: Colors | None = None,
    ) -> None:
        if scoring not in SCORINGS:
            raise ValueError(f"geneval: scoring = {scoring!r} is not one of {', '.join(SCORINGS)}")
        self.scoring = scoring
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size}
        self.detector = detector or load_detector(path, **settings, side=side)
        self.colors = colors or ColorClassifier(
            load_open_clip(COLOR_WEIGHTS, color_model, path=color_path, **settings)
        )

    def to(self, device: str | torch.device) -> GenEval:
        for part in (self.detector, self.colors):
            if hasattr(part, "to"):
                part.to(device)
        return self

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[Task]:
        """What the prompts ask for. Raises ValueError, naming prompt and field, for metadata missing or wrong."""
        return [parse(data, prompt) for prompt, data in zip(prompts, metadata, strict=True)]

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """metadata: see `geneval_logic`. Raises ValueError as `check` does."""
        tasks = self.check(prompts, metadata)
        detected = self.detector(images)
        found = [select(own, task.threshold) for own, task in zip(detected, tasks, strict=True)]
        verdicts = [
            judge(task, own, self.scoring)
            for task, own in zip(tasks, self._colored(images, tasks, found), strict=True)
        ]
        columns = {
            name: _column([getattr(v, name) for v in verdicts]) for name in ("strict", "nonstrict")
        }
        for tag in TAGS:
            rows = np.array([task.tag == tag for task in tasks], dtype=bool)
            for prefix, name in (("tag", "nonstrict"), ("strict", "strict")):
                columns[f"{prefix}/{tag}"] = np.where(rows, columns[name], np.float32(np.nan))
        return Scores(_column([v.graded for v in verdicts]), columns)

    def _colored(self, images: np.ndarray, tasks: list[Task], found: list[Found]) -> list[Found]:
        """`found` with the colours that the tasks ask for, classified in one batch."""
        wanted = [
            (i, d)
            for i, (task, own) in enumerate(zip(tasks, found, strict=True))
            for d in to_color(task, own)
        ]
        if not wanted:
            return found
        named = self.colors([images[i] for i, _ in wanted], [d for _, d in wanted])
        color = {(i, id(d)): name for (i, d), name in zip(wanted, named, strict=True)}
        return [
            {
                label: [replace(d, color=color.get((i, id(d)), "")) for d in own]
                for label, own in objects.items()
            }
            for i, objects in enumerate(found)
        ]


def _column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _golden() -> list[Case]:
    """None of the images shows the object asked for, so none is above another."""
    metadata = {"tag": "single_object", "include": [{"class": "giraffe", "count": 1}]}
    images = golden_images().items()
    return [
        Case(name, image, "a photo of a giraffe", rank=0, metadata=dict(metadata))
        for name, image in images
    ]


CHECKS = {
    "geneval": Check(
        packages=("open_clip", "scipy"),
        extra="geneval",
        weights=(
            Weights(DETECTOR_WEIGHTS.repo, 0.3, DETECTOR_WEIGHTS.files),
            Weights(COLOR_WEIGHTS.repo, 1.7, (COLOR_WEIGHTS.file,)),
        ),
        cases=_golden,
    )
}
