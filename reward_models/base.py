"""What a scorer is: uint8 images, prompts and metadata in, one score per image out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Metadata = dict[str, Any]


class Unavailable(RuntimeError):
    """The scorer cannot be reached now (server down, timeout, too busy); try again later."""


class NotScores(ValueError):
    """A scorer returned something other than one number per image."""


@dataclass(frozen=True)
class Scores:
    """The scores of B images.

    score: (B,) float32, NaN where an image has no score.
    extras: name -> (B,) float32, parts of the score or related measures, for the logs.
    reason: why the first image without a score has none, in words; "" if unknown.
    """

    score: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""

    @classmethod
    def read(cls, returned: Any, n: int) -> Scores:
        """What a scorer returned for n images, as Scores with columns (n,) float32.

        returned: Scores, the scores alone (an array, a tensor or a list), or a tuple of the scores
        and a dict of extras. Raises NotScores for anything else, and for another number of values.
        """
        score, extras, reason = returned, {}, ""
        if isinstance(returned, Scores):
            score, extras, reason = returned.score, returned.extras, returned.reason
        elif isinstance(returned, tuple) and len(returned) == 2 and _is_sequence(returned[0]):
            score, extras = returned
        if not isinstance(extras, Mapping):
            raise NotScores(
                f"the scorer returned extras of type {type(extras).__name__}: return a dict, "
                "{name: one number per image}"
            )
        columns = {
            str(name): _column(f"the extra {name!r}", values, n) for name, values in extras.items()
        }
        return cls(_column("the score", score, n), columns, reason)


def _is_sequence(values: Any) -> bool:
    return isinstance(values, list | tuple) or getattr(values, "ndim", 0) > 0


def _column(name: str, values: Any, n: int) -> np.ndarray:
    """Values as (n,) float32. Raises NotScores."""
    if not _is_sequence(values):
        raise NotScores(
            f"the scorer returned {name} as {type(values).__name__}: return Scores, or an array "
            "or a list with one number per image"
        )
    if hasattr(values, "detach"):  # a tensor, on any device
        values = values.detach().float().cpu().numpy()
    try:
        column = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise NotScores(
            f"the scorer returned {name} with values that are not numbers: {error}"
        ) from error
    if column.shape != (n,):
        raise NotScores(
            f"the scorer returned {name} of shape {column.shape} for {n} images: return one "
            "number per image"
        )
    return column


class Scorer(Protocol):
    """A callable that scores a batch. It may hold a model, loaded when the scorer is built.

    It returns Scores, or what `Scores.read` takes for it: an array or a list of B numbers, or a
    tuple of them and a dict of extras.

    It raises `Unavailable` if another try may succeed. After any other exception the caller halves
    the batch to find the images that cause it. Optional methods and class attributes:

    to(device): move the model.
    check(prompts, metadata): raise ValueError for prompts that can never be scored.
    close(): release connections and processes.
    macros = {name: extras}: figures to report too, each the mean of the means of those extras.
    doctor = Check(...): what `python -m reward_models.doctor` needs to know.
    scores_groups = True: the score of an image depends on the other images of its group. Each call
      then holds every image of one or several groups, and has a fourth argument: groups (B,) int64,
      equal for the images of one group. A group has at least two images; its images need not be
      consecutive. After an exception the caller separates groups but splits none.
    """

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """images (B, H, W, 3) uint8; B prompts; B metadata."""
        ...
