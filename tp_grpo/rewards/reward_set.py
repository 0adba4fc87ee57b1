"""The rewards of a run: scorers by name with weights, each on a thread of its own beside the next rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_models import Metadata, Scorer, Scores, build, macros, takes, target
from tp_grpo.ranks.agreement import MustStop
from tp_grpo.rewards.scorer_thread import (
    UNAVAILABLE,
    Batch,
    ScorerThread,
    ScorerThreadOptions,
    State,
    is_number,
    split_options,
)

REMOTE = "reward_models.client:RemoteScorer"


class RewardError(MustStop):
    """A scorer failed, or left too many images without a score. The message says which and what to do."""


@dataclass(frozen=True)
class Rewards:
    """Of n images: total, the weighted sum; by scorer; and the scorers' extras, named "scorer/extra". All (n,) fp32.

    NaN where a score could not be had; the total is NaN where any of weight other than 0 is.
    """

    total: Tensor
    scores: dict[str, Tensor]
    extras: dict[str, Tensor]

    def extra(self, name: str) -> Tensor:
        """An extra like `total`; NaN where this batch had none of that name."""
        return self.extras[name] if name in self.extras else torch.full_like(self.total, torch.nan)

    def columns(self, extras: Iterable[str]) -> dict[str, Tensor]:
        """ "total", each score, and the extras of these names."""
        return {"total": self.total} | self.scores | {name: self.extra(name) for name in extras}


Share = Callable[[dict[str, State]], Sequence[dict[str, State]]]


class RewardSet:
    """`{"pickscore": 1.0}` or `{"shapes": {"weight": 1.0, ...options}}`: builds the scorers and adds their scores up.

    Beside its own, every scorer takes the options `batch_size`, `placement`, `remote` and `patience` of
    `scoring.ScorerThreadOptions`; what becomes of its failures is told there. A scorer of weight 0 judges evaluations alone:
    what is never trained on tells whether the reward is earned (`alarms`). After `settle`, `extras` are the names of
    all extras, `macros` the macro means that can be taken of them, and `errors` what each scorer that failed said last.

    Raises ValueError for no scorer, an unknown name, a foreign option or a weight that is no number; what can be told
    of any scorer without its weights is told before the first is built.
    """

    def __init__(self, scorers: Mapping[str, Any]) -> None:
        if not scorers:
            raise ValueError(
                "rewards.scorers is empty: name at least one scorer, as in {'shapes': {'weight': 1.0}}"
            )
        self.scorers: dict[str, Scorer] = {}
        self.weights: dict[str, float] = {}
        self.threads: dict[str, ScorerThread] = {}
        self.extras: list[str] = []
        self.macros = macros(scorers)
        self.errors: dict[str, str] = {}
        for name, (weight, options, own) in {
            name: _read(name, given) for name, given in scorers.items()
        }.items():
            self._add(name, weight, options, own)
        # One thread: results are added up in the order their batches came.
        self._adder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def _add(
        self, name: str, weight: float, options: ScorerThreadOptions, own: dict[str, Any]
    ) -> None:
        factory = REMOTE if options.remote else name
        if options.batch_size and takes(factory, "batch_size"):
            own = {"batch_size": options.batch_size, **own}
        scorer = (
            build(REMOTE, url=options.remote, name=name, **own)
            if options.remote
            else build(name, **own)
        )
        self.scorers[name], self.weights[name], self.threads[name] = (
            scorer,
            weight,
            ScorerThread(name, options),
        )
        if own.get("device", "auto") == "auto":  # what the user put somewhere stays there
            self.threads[name].place(scorer)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError when a scorer that can tell could never score one of these, or is out of reach."""
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
        """Start scoring images (n, H, W, 3) uint8. Failed scores are NaN; `settle` tells, once all ranks are here.

        finite (n,) bool: the images that have pixels, see `finite_images`; the others are not scored, and have failed.
        trained_only: leave out the scorers of weight 0.
        """
        rows = np.flatnonzero(np.ones(len(images), bool) if finite is None else finite)
        batch = Batch(images, prompts, metadata)
        asked = [name for name in self.scorers if self.weights[name] or not trained_only]
        if len(rows) < len(images):
            batch = Batch(*batch.take(rows))
            for name in asked:
                lost = len(images) - len(rows)
                self.threads[name].tell(
                    "images that are NaN or infinite: the model or its VAE overflowed", lost
                )
        parts = {name: self.threads[name].submit(self.scorers[name], batch) for name in asked}
        return self._adder.submit(self._add_up, parts, torch.from_numpy(rows), len(images))

    def score(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Rewards:
        """`submit`, and wait. Raises RewardError for a scorer that cannot go on."""
        result = self.submit(images, prompts, metadata).result()
        self.settle()
        return result

    def settle(self, share: Share = lambda own: [own]) -> None:
        """All ranks learn each other's failures and extras; called by all, with their submitted batches done.

        share: gives every rank's object to every rank. Raises RewardError, on all ranks alike, when a scorer met a
        programming error on any.
        """
        ranks = share({name: thread.state() for name, thread in self.threads.items()})
        seen = [(name, state) for rank in ranks for name, state in rank.items()]
        self.extras = list(
            dict.fromkeys(f"{name}/{extra}" for name, state in seen for extra in state.extras)
        )
        self.errors = {name: state.error for name, state in seen if state.error}
        for name, state in seen:
            if state.broken:
                raise RewardError(f"the scorer {name!r} failed with {state.error}")

    def check_failed(self, scores: Mapping[str, Tensor], max_failed: float) -> float:
        """The function of that name for these scorers, in the words of their own errors; other names are ignored."""
        return check_failed(
            {name: scores[name] for name in self.scorers if name in scores}, max_failed, self.errors
        )

    def close(self) -> None:
        """Drop what is still queued; the calls in work are finished, processes of scorers ended."""
        for thread in self.threads.values():
            thread.close()
        self._adder.shutdown(wait=False, cancel_futures=True)
        for scorer in self.scorers.values():
            if hasattr(scorer, "close"):
                scorer.close()

    def _add_up(self, parts: dict[str, Future[Scores]], rows: Tensor, n: int) -> Rewards:
        """The scores of the images `rows` of n."""

        def spread(values: np.ndarray) -> Tensor:
            return torch.full((n,), torch.nan).index_copy(0, rows, torch.from_numpy(values))

        total, scores, extras = torch.zeros(n), {}, {}
        for name, part in parts.items():
            done = part.result()
            scores[name] = spread(done.score)
            extras.update({f"{name}/{key}": spread(value) for key, value in done.extras.items()})
            if self.weights[
                name
            ]:  # or a score that is missing would spoil a total that it has no part in
                total = total + self.weights[name] * scores[name]
        return Rewards(total, scores, extras)


def _read(name: str, given: Any) -> tuple[float, ScorerThreadOptions, dict[str, Any]]:
    """Weight, the thread's options and the scorer's own. Raises ValueError for what is wrong whatever the weights."""
    where = f"rewards.scorers.{name}"
    if not isinstance(given, Mapping) and not is_number(given):
        raise ValueError(
            f"{where} = {given!r} is not a number, the weight, nor a dict of options, as {{'weight': 1.0}}"
        )
    options, own = split_options(given if isinstance(given, Mapping) else {"weight": given})
    weight = own.pop("weight", 1.0)
    if not is_number(weight):
        raise ValueError(f"{where}.weight = {weight!r} is not a number")
    options.check(name)
    if not options.remote:
        target(name)
    device = own.get("device", "auto")
    if options.placement and not options.remote and device != "auto":
        raise ValueError(
            f"{where}.device = {device!r}, but {where}.placement = {options.placement!r}: drop one"
        )
    return float(weight), options, own


def check_failed(
    scores: Mapping[str, Tensor],
    max_failed: float,
    errors: Mapping[str, str] = MappingProxyType({}),
) -> float:
    """The share of images without a score; raises RewardError, naming the scorer, when it exceeds max_failed.

    errors: what the scorers said last, for the message.
    """
    worst = 0.0
    for name, score in scores.items():
        missing = int(score.isnan().sum())
        share = missing / score.numel()
        if share > max_failed:
            said = f". Its last error: {errors[name]}" if name in errors else ""
            raise RewardError(
                f"the scorer {name!r} gave no score (NaN) for {missing} of {score.numel()} images, {share:.0%}; "
                f"rewards.max_failed = {max_failed:g} allows {max_failed:.0%}{said}"
            )
        worst = max(worst, share)
    return worst
