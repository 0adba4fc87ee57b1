"""PickScore's rank of an image among the images of its group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reward_models.base import Metadata, Scores
from reward_models.check import Check, matching_cases
from reward_models.pickscore import PickScore


class PickScoreRank(PickScore):
    """score = the rank of the image's PickScore in its group, in [0, 1]; its mean is 1/2.

    0 is the worst and 1 the best; n different scores are evenly spaced, equal ones share their mean
    rank. An image without a PickScore is NaN and has no rank; so is one that is left alone.
    Extra: `pickscore`, the PickScore itself. Options: those of `PickScore`.
    """

    scores_groups = True
    weights = replace(PickScore.weights, scorer="pickscore_rank")
    processor_weights = replace(PickScore.processor_weights, scorer="pickscore_rank")
    doctor = Check(weights=(weights, processor_weights), cases=matching_cases)

    def __call__(  # type: ignore[override]
        self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], groups: np.ndarray
    ) -> Scores:
        """groups (B,) int64: equal for the images that are ranked together."""
        score = super().__call__(images, prompts, metadata).score
        ranks = np.full_like(score, np.nan)
        for group in np.unique(groups):
            rows = groups == group
            ranks[rows] = mean_ranks(score[rows])
        return Scores(ranks, {"pickscore": score})


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of (n,) values from 0, the lowest, to 1; equal values share their mean rank.

    NaN where a value is not finite, and where only one is.
    """
    finite = np.isfinite(values)
    known = values[finite]
    below = (known[:, None] > known).sum(1)
    equal = (known[:, None] == known).sum(1) - 1
    ranks = np.full(len(values), np.nan)
    if len(known) > 1:
        ranks[finite] = (below + equal / 2) / (len(known) - 1)
    return ranks
