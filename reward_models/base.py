"""What a scorer is: uint8 images, prompts and metadata in; one score an image out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Metadata = dict[str, Any]


class Unavailable(RuntimeError):
    """What scores is out of reach for now (a server that is down, a timeout, too busy): worth another try later."""


@dataclass(frozen=True)
class Scores:
    """What a scorer says of B images.

    score: (B,) float32, NaN where no score could be had.
    extras: name -> (B,) float32, parts of the score or related measures, for the logs.
    """

    score: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)


class Scorer(Protocol):
    """A callable that scores a batch; it may hold a model, loaded when it is built.

    What it may offer beside: `to(device)`, which moves its model; `check(prompts, metadata)`, which raises ValueError
    for what it could never score; `close()`; on its class `macros`, {name: extras}, figures to report as well,
    each the mean of those extras' means. It raises `Unavailable` for what is worth another try; of any other exception
    the caller finds out, by halving the batch, which images it is about.
    """

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """images (B, H, W, 3) uint8; prompts and metadata of length B."""
        ...
