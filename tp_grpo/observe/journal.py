"""How a run reports its epochs and evaluations: metrics, terminal lines, ladders with pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tp_grpo.evaluate.held_out import Evaluation
from tp_grpo.images import diversity, thumbnails
from tp_grpo.method.stats import summarise
from tp_grpo.observe.tracking import Tracker
from tp_grpo.plan import Plan
from tp_grpo.ranks import progress
from tp_grpo.ranks.clock import Clock
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.settings import Settings
from tp_grpo.train.gather import Gathered, in_order
from tp_grpo.train.rollout import Pending
from tp_grpo.types import Credit


class Journal:
    """Called by all ranks; the main process writes. The clock has timed what is reported next."""

    def __init__(
        self, runtime: Runtime, plan: Plan, tracker: Tracker, clock: Clock, config: Settings
    ) -> None:
        self.runtime, self.plan, self.tracker = runtime, plan, tracker
        self.clock, self.config = clock, config

    def evaluation(self, epoch: int, result: Evaluation) -> dict[str, float]:
        """Report the policy after `epoch` epochs; returns the mean scores with their errors."""
        summary = result.summary()
        self.tracker.log("eval", epoch, summary | {"seconds": self.clock.lap()["seconds"]})
        tensors = result.scores | {"images": thumbnails(result.images)}
        self.tracker.save("evaluations", epoch, tensors, result.prompts)
        self.runtime.say(progress.evaluation(epoch, summary))
        return summary

    def epoch(
        self, epoch: int, samples: Gathered, credit: Credit, stats: dict[str, float]
    ) -> float:
        """stats: of the updates, by name. Returns the mean reward."""
        ladders = {"reward": samples.ladder} | samples.scores | samples.extras
        final = {name: ladder[:, -1] for name, ladder in ladders.items()}
        values = summarise(final, samples.group_id.tolist())
        if self.plan.points == "trajectories":
            turning = credit.turning.float().mean(0).tolist()
            values |= {f"turning_{k}": v for k, v in zip(self.plan.window, turning, strict=True)}
        values |= stats | self.clock.lap()
        self.tracker.log("train", epoch, values)
        images = self.plan.groups * self.plan.group_size
        self.runtime.say(progress.summary(epoch, self.config.epochs, values, images))
        return values["reward"]

    def image_stats(self, pending: list[Pending], group_id: Tensor) -> dict[str, float]:
        """What the alarms check in an epoch's images; group_id (N,) of all ranks' samples."""
        coarse = in_order(self.runtime, self.plan, [p.coarse for p in pending])
        detail = in_order(self.runtime, self.plan, [p.detail for p in pending])
        return {"diversity": diversity(coarse, group_id), "high_frequency": detail.mean().item()}

    def keeps_ladders(self, epoch: int) -> bool:
        """Whether the epoch is a `tracking.images_every`-th or the last."""
        return epoch % self.config.tracking.images_every == 0 or epoch == self.config.epochs

    def ladders(
        self,
        epoch: int,
        samples: Gathered,
        credit: Credit,
        advantages: Tensor,
        pending: list[Pending],
        prompts: list[str],
        forks: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep the epoch's ladders, and thumbnails of its first groups.

        prompts: of the whole set, by group id. forks: of shared states, see `Forks.kept`.
        """
        small = [thumbnails(p.images) for p in pending if p.images is not None]
        count = self.config.tracking.groups * self.plan.group_size
        images = in_order(self.runtime, self.plan, small)[:count]
        tensors = {
            "ladder": samples.ladder,
            "states": torch.tensor(self.plan.completion.states),
            "reward": credit.reward,
            "increment": credit.increment,
            "turning": credit.turning,
            "advantage": advantages,
            "group_id": samples.group_id,
            "images": images,
        }
        texts = [prompts[i] for i in samples.group_id[: len(images)].tolist()]
        self.tracker.save("ladders", epoch, tensors | dict(forks or {}), texts)
