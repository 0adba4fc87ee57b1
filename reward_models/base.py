"""What a scorer is: uint8 images, prompts and metadata in, one score per image out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Metadata = dict[str, Any]


class Unavailable(RuntimeError):
    """The scorer cannot be reached now (server down, timeout, too busy); try again later."""


@dataclass(frozen=True)
class Scores:
    """The scores of B images.

    score: (B,) float32, NaN where an image has no score.
    extras: name -> (B,) float32, parts of the score or related measures, for the logs.
    """

    score: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)


class Scorer(Protocol):
    """A callable that scores a batch. It may hold a model, loaded when the scorer is built.

    It raises `Unavailable` if another try may succeed. After any other exception the caller halves
    the batch to find the images that cause it. Optional methods and class attributes:

    to(device): move the model.
    check(prompts, metadata): raise ValueError for prompts that can never be scored.
    close(): release connections and processes.
    macros = {name: extras}: figures to report too, each the mean of the means of those extras.
    doctor = Check(...): what `python -m reward_models.doctor` needs to know.
    """

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """images (B, H, W, 3) uint8; B prompts; B metadata."""
        ...
