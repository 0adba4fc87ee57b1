"""Scorers that misbehave, named in configs as "tests.scorers:Name"."""

from __future__ import annotations

import builtins
import os
import time
from typing import Any, ClassVar

import numpy as np

from reward_models import Scores


class Brightness:
    """A scorer of one's own: how bright the image is."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores((self.scale * images.mean(axis=(1, 2, 3)) / 255).astype(np.float32))


class ByTag(Brightness):
    """Brightness of the prompts of tag a and of tag b apart, and the mean of the two means."""

    macros: ClassVar = {"overall": ("tag/a", "tag/b")}

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        score = super().__call__(images, prompts, metadata).score
        own = {tag: np.array([data["tag"] == tag for data in metadata]) for tag in "ab"}
        return Scores(
            score,
            {f"tag/{tag}": np.where(rows, score, np.float32(np.nan)) for tag, rows in own.items()},
        )


class Placed(Brightness):
    """Remembers where it was put and how many images it takes at once."""

    def __init__(self, device: str = "auto", batch_size: int = 16) -> None:
        super().__init__()
        self.device, self.batch_size = device, batch_size
        self.moves: list[str] = []

    def to(self, device: object) -> None:
        self.moves.append(str(device))


class Unbuildable(Brightness):
    def __init__(self) -> None:
        raise AssertionError("it was built")


class Raises(Brightness):
    """Works for `calls` batches and then raises the built-in exception called `error`."""

    def __init__(self, calls: int, error: str = "RuntimeError") -> None:
        super().__init__()
        self.left = calls
        self.error = getattr(builtins, error)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        self.left -= 1
        if self.left < 0:
            raise self.error("the engine is out of fuel")
        return super().__call__(images, prompts, metadata)


class Gaps(Brightness):
    """No score for every `every`-th image."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        score = super().__call__(images, prompts, metadata).score
        score[:: self.every] = np.nan
        return Scores(score)


class Slow(Brightness):
    """Takes its time, so that a run can be interrupted in mid-epoch."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        time.sleep(0.3)
        return super().__call__(images, prompts, metadata)


class FailsOnRank(Brightness):
    """On one rank, raises the built-in exception called `error`; on the others it has an extra."""

    def __init__(self, rank: int, error: str) -> None:
        super().__init__()
        self.error = getattr(builtins, error) if int(os.environ.get("RANK", 0)) == rank else None

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        if self.error:
            raise self.error("only here")
        score = super().__call__(images, prompts, metadata).score
        return Scores(score, {"dark": 1 - score})


class Flat(Brightness):
    """The same for every image."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores(np.full(len(images), 0.5, np.float32))


def brightness(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> np.ndarray:
    """A plain function that scores."""
    return images.mean(axis=(1, 2, 3)) / 255


def scaled(images: Any, prompts: Any, metadata: Any, *, scale: float = 1.0) -> tuple:
    """A function with an option; it returns a list of scores and a dict of extras."""
    score = (scale * images.mean(axis=(1, 2, 3)) / 255).tolist()
    return score, {"dark": [1 - value for value in score]}


def make_brightness(scale: float) -> Brightness:
    """A function that builds a scorer."""
    return Brightness(scale)


def two_arguments(images: Any, prompts: Any) -> Any:
    """Not what a scorer looks like."""


def builds_nothing() -> Any:
    """A function that should return a scorer."""
    return 3


def two_prompts() -> list[tuple[str, dict]]:
    """A source of prompts, as "tests.scorers:two_prompts"."""
    return [("a red circle", {}), ("a blue square", {})]


class Contrast:
    """How much brighter an image is than the others of its group, in [-1, 1]; knows its calls.

    size: images of a group; another number is a bug, 0 allows any. score = the image's brightness
    minus the mean of its group's, and the extra `share` is 1 / the size of its group.
    """

    scores_groups = True

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.calls: list[list[int]] = []

    def __call__(
        self, images: np.ndarray, prompts: list[str], metadata: list[dict], groups: np.ndarray
    ) -> Scores:
        self.calls.append(groups.tolist())
        score = images.mean(axis=(1, 2, 3)) / 255
        share = np.zeros(len(images))
        for group in np.unique(groups):
            rows = groups == group
            if self.size not in (0, rows.sum()):
                raise TypeError(f"a group of {rows.sum()} images, not of {self.size}")
            score[rows] -= score[rows].mean()
            share[rows] = 1 / rows.sum()
        return Scores(score, {"share": share})


def contrast(images: Any, prompts: Any, metadata: Any, groups: Any, *, scale: float = 1.0) -> Any:
    """A function that scores groups."""
    return scale * Contrast()(images, prompts, metadata, groups).score


contrast.scores_groups = True  # type: ignore[attr-defined]


def make_contrast() -> Contrast:
    """A function that builds a scorer of groups."""
    return Contrast()


class Forgetful(Contrast):
    """Declares that it scores groups, and takes no ids."""

    def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any:  # type: ignore[override]
        return [0.0] * len(images)
