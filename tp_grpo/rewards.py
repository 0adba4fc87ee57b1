"""The rewards of a run: scorers by name with weights, one batch at a time on a thread of their own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_models import Metadata, Scorer, build


class RewardError(RuntimeError):
    """A scorer failed, or left too many images without a score. The message says which and what to do."""


@dataclass(frozen=True)
class Rewards:
    """Of n images: total, the weighted sum; by scorer; and the scorers' extras, named "scorer/extra". All (n,) fp32."""

    total: Tensor
    scores: dict[str, Tensor]
    extras: dict[str, Tensor]


class RewardSet:
    """`{"pickscore": 1.0}` or `{"shapes": {"weight": 1.0, ...options}}`: builds the scorers and adds their scores up.

    Raises ValueError for no scorer, an unknown name, a foreign option or a weight that is no number.
    """

    def __init__(self, scorers: Mapping[str, Any]) -> None:
        if not scorers:
            raise ValueError("rewards.scorers is empty: name at least one scorer, as in {'shapes': {'weight': 1.0}}")
        self.scorers: dict[str, Scorer] = {}
        self.weights: dict[str, float] = {}
        for name, given in scorers.items():
            options = {"weight": given} if isinstance(given, int | float) else dict(given)
            weight = options.pop("weight", 1.0)
            if not isinstance(weight, int | float) or not np.isfinite(weight):
                raise ValueError(f"rewards.scorers.{name}.weight = {weight!r} is not a number")
            self.scorers[name], self.weights[name] = build(name, **options), float(weight)
        # One thread: batches are scored in the order they come, beside the next batch's sampling.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def submit(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Future[Rewards]:
        """Start scoring images (n, H, W, 3) uint8; the future raises RewardError when a scorer fails."""
        return self._thread.submit(self.score, images, prompts, metadata)

    def score(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Rewards:
        """images (n, H, W, 3) uint8; a score that is not finite becomes NaN. Raises RewardError when a scorer fails."""
        scores, extras = {}, {}
        for name, scorer in self.scorers.items():
            try:
                result = scorer(images, prompts, metadata)
                scores[name] = _column(result.score, len(images))
                extras.update({f"{name}/{key}": _column(value, len(images)) for key, value in result.extras.items()})
            except Exception as error:
                raise RewardError(f"the scorer {name!r} failed with {type(error).__name__}: {error}") from error
        total = sum((self.weights[name] * score for name, score in scores.items()), torch.zeros(len(images)))
        return Rewards(total, scores, extras)

    def close(self) -> None:
        """Drop what is still queued; the batch in work is finished."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def mean_and_error(values: Tensor, prompts: list[str]) -> tuple[float, float]:
    """Mean of values (n,) and its standard error over prompts: images of one prompt are not independent.

    NaN values are left out, and prompts that have no other; (nan, nan) when none is left, error nan for one prompt.
    """
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    had = ~values.isnan()
    groups = torch.tensor([row[prompt] for prompt in prompts])[had]
    totals = torch.zeros(len(row), dtype=torch.float64).index_add_(0, groups, values[had].double())
    counts = torch.bincount(groups, minlength=len(row))
    means = totals[counts > 0] / counts[counts > 0]
    return means.mean().item(), (means.std() / len(means) ** 0.5).item() if len(means) > 1 else float("nan")


def _column(values: Any, n: int) -> Tensor:
    column = torch.from_numpy(np.array(values, dtype=np.float32))
    if column.shape != (n,):
        raise ValueError(f"it gave values of shape {tuple(column.shape)} for {n} images")
    return torch.where(column.isfinite(), column, torch.nan)


def to_uint8(images: Tensor) -> np.ndarray:
    """(n, 3, H, W) in [0, 1] -> (n, H, W, 3) uint8, quantised once for every scorer and every picture."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def check_failed(scores: Mapping[str, Tensor], max_failed: float) -> float:
    """The share of images without a score; raises RewardError, naming the scorer, when it exceeds max_failed."""
    worst = 0.0
    for name, score in scores.items():
        missing = int(score.isnan().sum())
        share = missing / score.numel()
        if share > max_failed:
            raise RewardError(
                f"the scorer {name!r} gave no score (NaN) for {missing} of {score.numel()} images, {share:.0%}; "
                f"rewards.max_failed = {max_failed:g} allows {max_failed:.0%}"
            )
        worst = max(worst, share)
    return worst
