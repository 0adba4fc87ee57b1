"""GenEval: are the objects, counts, colours and positions that the prompt asks for in the image?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from reward_models import geneval_logic as logic
from reward_models.base import Metadata, Scores
from reward_models.check import Check, golden_cases
from reward_models.geneval_detector import SIDE, ColorClassifier, ColorClip, Mask2FormerDetector
from reward_models.geneval_logic import TAGS, ByLabel, Detection, Task

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

Detector = Callable[[np.ndarray], list[list[Detection]]]
Colors = Callable[[Sequence[np.ndarray], Sequence[Detection]], list[str]]
GIRAFFE = {"tag": "single_object", "include": [{"class": "giraffe", "count": 1}]}


class GenEval:
    """score: the graded training reward, in [0, 1] with "fixed" scoring.

    extras: strict and nonstrict (the official metric), 0 or 1; "tag/counting" and so on, nonstrict
    for the images of that tag and NaN for others; "strict/counting" and so on, the same of strict.
    GenEval's overall score is the macro mean over the six "tag/..." extras.

    scoring: "fixed", or "reference" with the quirks of the public implementation (see
    `geneval_logic.grade`). path: local folder or hub id of the Mask2Former. color_path: the CLIP's
    checkpoint file, a folder with it or a hub id. color_model: its name in open_clip.
    side: pixels to which the shorter side of an image is resized for the detector; the benchmark
    has 800. detector, colors: both, already loaded.
    """

    macros: ClassVar[dict[str, tuple[str, ...]]] = {
        "overall": tuple(f"tag/{tag}" for tag in TAGS),
        "overall_strict": tuple(f"strict/{tag}" for tag in TAGS),
    }
    # No golden image shows a giraffe, so none must score more than another.
    doctor = Check(
        packages=("open_clip", "scipy"),
        extra="geneval",
        weights=(Mask2FormerDetector.weights, ColorClip.weights),
        cases=lambda: golden_cases("a photo of a giraffe", GIRAFFE),
    )

    def __init__(
        self,
        scoring: str = "fixed",
        path: str = "",
        color_path: str = "",
        color_model: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 8,
        side: int = SIDE,
        detector: Detector | None = None,
        colors: Colors | None = None,
    ) -> None:
        if scoring not in logic.SCORINGS:
            raise ValueError(
                f"geneval: scoring = {scoring!r} is not one of {', '.join(logic.SCORINGS)}"
            )
        self.scoring = scoring
        self.detector = detector or Mask2FormerDetector(path, device, dtype, batch_size, side)
        self.colors = colors or ColorClassifier(
            ColorClip(color_path, color_model, device, dtype, batch_size)
        )

    def to(self, device: str | torch.device) -> Self:
        for part in (self.detector, self.colors):
            if hasattr(part, "to"):
                part.to(device)
        return self

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[Task]:
        """What the prompts ask for. Raises ValueError, naming prompt and field, for a mistake."""
        return [logic.parse(data, prompt) for prompt, data in zip(prompts, metadata, strict=True)]

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """metadata: see `geneval_logic`. Raises ValueError as `check` does."""
        tasks = self.check(prompts, metadata)
        shown = [
            logic.select(detections, task.threshold)
            for detections, task in zip(self.detector(images), tasks, strict=True)
        ]
        self._color(images, tasks, shown)
        verdicts = [logic.judge(*pair, self.scoring) for pair in zip(tasks, shown, strict=True)]
        graded, strict, nonstrict = np.array(verdicts, dtype=np.float32).reshape(-1, 3).T
        extras = {"strict": strict, "nonstrict": nonstrict}
        for tag in TAGS:
            rows = np.array([task.tag == tag for task in tasks], dtype=bool)
            extras[f"tag/{tag}"] = np.where(rows, nonstrict, np.float32(np.nan))
            extras[f"strict/{tag}"] = np.where(rows, strict, np.float32(np.nan))
        return Scores(graded, extras)

    def _color(self, images: np.ndarray, tasks: list[Task], shown: list[ByLabel]) -> None:
        """Set the colours that the verdicts read, classified in one batch."""
        asked = [
            (image, detection)
            for image, task, objects in zip(images, tasks, shown, strict=True)
            for detection in logic.to_color(task, objects)
        ]
        if asked:
            colors = self.colors(*zip(*asked, strict=True))
            for (_, detection), color in zip(asked, colors, strict=True):
                detection.color = color
