"""The rewards of a run: weighted scorers, each on its own thread during the next rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_models import Metadata, Scorer, Scores, compares, compares_groups, macros, own_code
from tp_grpo.rewards import scorer_thread
from tp_grpo.rewards.batch import Batch
from tp_grpo.rewards.scorer_options import Entry
from tp_grpo.rewards.scorer_thread import UNAVAILABLE, ScorerThread, State
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


@contextmanager
def _in_words(name: str, failed: str) -> Iterator[None]:
    """Raises ValueError for what the scorer's code raises inside; its own ValueErrors pass."""
    try:
        yield
    except UNAVAILABLE as error:
        raise ValueError(f"rewards.scorers.{name} is out of reach: {error}") from error
    except ValueError:
        raise
    except own_code.RAISED as error:
        file = own_code.entered(error, name, scorer_thread.__file__)
        reason = own_code.mistake(error, file)
        raise ValueError(f"rewards.scorers.{name} {failed}: {reason}") from error


class RewardSet:
    """Builds the scorers of a config and adds up their scores.

    scorers: {"pickscore": 1.0} or {"shapes": {"weight": 1.0, ...options}}; every scorer also takes
    the options of `ScorerOptions`. One of weight 0 judges evaluations alone: what is not trained
    on tells whether the reward is earned (`alarms`). `ScorerThread` says what failures cost.

    A scorer that declares `scores_groups` compares the images of a prompt: `grouped` names them,
    and `group_sizes` are the sizes of the groups that the run will make, by setting.

    `settle` updates `extras`, the names of all ranks' extras, and `errors` and `first_errors`, the
    last and the first error of each scorer that failed. `macros`: the macro means of the extras,
    see `method.stats.score_means`.

    Raises ValueError for no scorer, an unknown name or option, a value out of range, or groups of
    one image where a scorer compares them. All checks that need no weights run before any scorer is
    built.
    """

    def __init__(
        self, scorers: Mapping[str, Any], group_sizes: Mapping[str, int] | None = None
    ) -> None:
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
        _check_sizes(compares_groups(entries), group_sizes or {}, self.weights)
        for name, entry in entries.items():
            self.scorers[name] = entry.build(name)
            self.threads[name] = ScorerThread(name, entry.thread)
            if entry.scorer.get("device", "auto") == "auto":  # else the user has placed it
                with _in_words(name, "cannot be moved to its device"):
                    self.threads[name].place(self.scorers[name])
        self.grouped = [name for name, scorer in self.scorers.items() if compares(scorer)]
        _check_sizes(self.grouped, group_sizes or {}, self.weights)
        # One thread: results are added up in the order of their batches.
        self._adder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    @property
    def trains_groups(self) -> bool:
        """Whether a scorer of groups has a weight."""
        return any(self.weights[name] for name in self.grouped)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError if a scorer could never score one of them, or is out of reach.

        And for whatever else its check raises.
        """
        for name, scorer in self.scorers.items():
            if hasattr(scorer, "check"):
                with _in_words(name, "cannot check the prompts"):
                    scorer.check(prompts, metadata)

    def submit(
        self,
        images: np.ndarray,
        prompts: list[str],
        metadata: list[Metadata],
        finite: np.ndarray | None = None,
        *,
        trained_only: bool = False,
        groups: np.ndarray | None = None,
        grouped: bool | None = None,
    ) -> Future[Rewards]:
        """Start scoring images (n, H, W, 3) uint8; a failed score is NaN, and `settle` reports it.

        finite (n,) bool, from `finite_images`: the others are not scored, and count as failed.
        trained_only: leave out the scorers of weight 0.
        groups (n,) int: equal for the images that `grouped` scorers compare; each group is whole.
        None: the images of one prompt are a group.
        grouped: True for these scorers alone, False for all but them, None for all.
        """
        rows = np.arange(len(images)) if finite is None else np.flatnonzero(finite)
        if groups is None:
            number = {prompt: i for i, prompt in enumerate(prompts)}
            groups = np.array([number[prompt] for prompt in prompts])
        single = Batch(images, prompts, metadata)
        whole = Batch(images, prompts, metadata, np.asarray(groups, np.int64))
        names = [
            name
            for name in self.scorers
            if (self.weights[name] or not trained_only)
            and (grouped is None or grouped == (name in self.grouped))
        ]
        if lost := len(images) - len(rows):
            single, whole = Batch(*single.take(rows)), Batch(*whole.take(rows))
            reason = "images that are NaN or infinite: the model or its VAE overflowed"
            for name in names:
                self.threads[name].report(reason, lost)
        parts = {
            name: self.threads[name].submit(
                self.scorers[name], whole if name in self.grouped else single
            )
            for name in names
        }
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


def _check_sizes(
    names: Sequence[str], sizes: Mapping[str, int], weights: Mapping[str, float]
) -> None:
    """Raises ValueError where a scorer of groups gets groups of one image; sizes: by setting."""
    for name in names:
        # A scorer of weight 0 is asked in evaluations alone.
        asked = {s: n for s, n in sizes.items() if weights[name] or s.startswith("eval.")}
        for setting, size in asked.items():
            if size < 2:
                raise ValueError(
                    f"{setting} = {size}: rewards.scorers.{name} compares the images of a prompt, "
                    "so it needs at least 2"
                )
