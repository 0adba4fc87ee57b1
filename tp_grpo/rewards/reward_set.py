"""The rewards of a run: weighted scorers, each on its own thread during the next rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_models import Metadata, Scorer, Scores, macros
from tp_grpo.rewards.scorer_options import Entry
from tp_grpo.rewards.scorer_thread import UNAVAILABLE, Batch, ScorerThread, State
from tp_grpo.types import MustStop

States = dict[str, State]


class RewardError(MustStop):
    """A scorer failed, or left too many images without a score; the message says what to do."""


@dataclass(frozen=True)
class Rewards:
    """Scores of n images, (n,) fp32, NaN where missing.

    total: the weighted sum, NaN if a score of non-zero weight is.
    scores: by scorer. extras: by "scorer/extra".
    """

    total: Tensor
    scores: dict[str, Tensor]
    extras: dict[str, Tensor]

    def extra(self, name: str) -> Tensor:
        """An extra, shaped like `total`; NaN if this batch has none of that name."""
        return self.extras[name] if name in self.extras else torch.full_like(self.total, torch.nan)

    def columns(self, extras: Iterable[str]) -> dict[str, Tensor]:
        """ "total", each score, and the extras of these names."""
        return {"total": self.total} | self.scores | {name: self.extra(name) for name in extras}


class RewardSet:
    """Builds the scorers of a config and adds up their scores.

    scorers: {"pickscore": 1.0} or {"shapes": {"weight": 1.0, ...options}}; every scorer also takes
    the options of `ScorerOptions`. One of weight 0 judges evaluations alone: what is not trained
    on tells whether the reward is earned (`alarms`). `ScorerThread` says what failures cost.

    `settle` updates `extras`, the names of all ranks' extras, and `errors` and `first_errors`, the
    last and the first error of each scorer that failed. `macros`: the macro means of the extras,
    see `method.stats.score_means`.

    Raises ValueError for no scorer, an unknown name or option, or a value out of range. All checks
    that need no weights run before any scorer is built.
    """

    def __init__(self, scorers: Mapping[str, Any]) -> None:
        if not scorers:
            example = "{'shapes': {'weight': 1.0}}"
            raise ValueError(f"rewards.scorers is empty: name at least one scorer, as in {example}")
        entries = {name: Entry.read(name, value) for name, value in scorers.items()}
        self.weights = {name: entry.weight for name, entry in entries.items()}
        self.scorers: dict[str, Scorer] = {}
        self.threads: dict[str, ScorerThread] = {}
        self.macros = macros(scorers)
        self.extras: list[str] = []
        self.errors: dict[str, str] = {}
        self.first_errors: dict[str, str] = {}
        for name, entry in entries.items():
            self.scorers[name] = entry.build(name)
            self.threads[name] = ScorerThread(name, entry.thread)
            if entry.scorer.get("device", "auto") == "auto":  # else the user has placed it
                self.threads[name].place(self.scorers[name])
        # One thread: results are added up in the order of their batches.
        self._adder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError if a scorer could never score one of them, or is out of reach."""
        for name, scorer in self.scorers.items():
            try:
                if hasattr(scorer, "check"):
                    scorer.check(prompts, metadata)
            except UNAVAILABLE as error:
                raise ValueError(f"rewards.scorers.{name} is out of reach: {error}") from error

    def submit(
        self,
        images: np.ndarray,
        prompts: list[str],
        metadata: list[Metadata],
        finite: np.ndarray | None = None,
        *,
        trained_only: bool = False,
    ) -> Future[Rewards]:
        """Start scoring images (n, H, W, 3) uint8; a failed score is NaN, and `settle` reports it.

        finite (n,) bool, from `finite_images`: the others are not scored, and count as failed.
        trained_only: leave out the scorers of weight 0.
        """
        rows = np.arange(len(images)) if finite is None else np.flatnonzero(finite)
        batch = Batch(images, prompts, metadata)
        names = [name for name in self.scorers if self.weights[name] or not trained_only]
        if lost := len(images) - len(rows):
            batch = Batch(*batch.take(rows))
            reason = "images that are NaN or infinite: the model or its VAE overflowed"
            for name in names:
                self.threads[name].report(reason, lost)
        parts = {name: self.threads[name].submit(self.scorers[name], batch) for name in names}
        return self._adder.submit(self._add_up, parts, torch.from_numpy(rows), len(images))

    def score(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Rewards:
        """`submit`, and wait. Raises RewardError for a broken scorer."""
        rewards = self.submit(images, prompts, metadata).result()
        self.settle()
        return rewards

    def settle(self, all_gather: Callable[[States], Sequence[States]] = lambda x: [x]) -> None:
        """Tell all ranks of failures and extras; called by all, once their batches are scored.

        Raises RewardError, on all ranks alike, if a scorer of any rank is broken.
        """
        ranks = all_gather({name: thread.state() for name, thread in self.threads.items()})
        states = [(name, state) for rank in ranks for name, state in rank.items()]
        extras = (f"{name}/{extra}" for name, state in states for extra in state.extras)
        self.extras = list(dict.fromkeys(extras))
        self.errors = {name: state.error for name, state in states if state.error}
        self.first_errors = {name: state.first for name, state in reversed(states) if state.first}
        for name, state in states:
            if state.broken:
                raise RewardError(f"the scorer {name!r} failed with {state.error}")

    def check_failed(self, scores: Mapping[str, Tensor], max_failed: float) -> float:
        """The largest share of images that a scorer left without a score; ignores other names.

        Raises RewardError, with the scorer's first and last error, if it exceeds max_failed.
        """
        worst = 0.0
        for name in [name for name in self.scorers if name in scores]:
            missing, images = int(scores[name].isnan().sum()), scores[name].numel()
            worst = max(worst, missing / images)
            if missing / images > max_failed:
                raise RewardError(
                    f"the scorer {name!r} gave no score (NaN) for {missing} of {images} images, "
                    f"{missing / images:.0%}; rewards.max_failed = {max_failed:g} allows "
                    f"{max_failed:.0%}{self._why(name)}"
                )
        return worst

    def _why(self, name: str) -> str:
        """The first error of the scorer and its last, as sentences; "" if none is known."""
        first, last = self.first_errors.get(name, ""), self.errors.get(name, "")
        parts = [f"Its first error: {first}"] if first and first != last else []
        return "".join(f". {part}" for part in [*parts, f"Its last error: {last}"] if last)

    def close(self) -> None:
        """Cancel what is queued and close the scorers; running calls finish."""
        for thread in self.threads.values():
            thread.close()
        self._adder.shutdown(wait=False, cancel_futures=True)
        for scorer in self.scorers.values():
            if hasattr(scorer, "close"):
                scorer.close()

    def _add_up(self, parts: dict[str, Future[Scores]], rows: Tensor, n: int) -> Rewards:
        """Scores of the images `rows`, spread over all n."""

        def spread(values: np.ndarray) -> Tensor:
            return torch.full((n,), torch.nan).index_copy(0, rows, torch.from_numpy(values))

        total, scores = torch.zeros(n), {}
        extras: dict[str, Tensor] = {}
        for name, part in parts.items():
            result = part.result()
            scores[name] = spread(result.score)
            extras |= {f"{name}/{key}": spread(value) for key, value in result.extras.items()}
            if self.weights[name]:  # 0 x NaN would spoil the total
                total = total + self.weights[name] * scores[name]
        return Rewards(total, scores, extras)
