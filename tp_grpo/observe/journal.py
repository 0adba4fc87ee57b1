"""What a run tells of its epochs and evaluations: metrics, a line on the terminal, the ladders with their pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tp_grpo.evaluate.held_out import Evaluation
from tp_grpo.images import diversity, thumbnails
from tp_grpo.method.stats import summarise
from tp_grpo.observe import tracking
from tp_grpo.plan import Plan
from tp_grpo.ranks import progress
from tp_grpo.ranks.clock import Clock
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.train.gather import Gathered, in_order
from tp_grpo.train.rollout import Pending
from tp_grpo.types import Credit


class Journal:
    """Called by all ranks; the main process writes. The clock has timed the phases of what is told next."""

    def __init__(
        self, runtime: Runtime, plan: Plan, tracker: tracking.Tracker, clock: Clock, config: Any
    ) -> None:
        self.runtime, self.plan, self.tracker, self.clock, self.config = (
            runtime,
            plan,
            tracker,
            clock,
            config,
        )

    def evaluation(self, epoch: int, result: Evaluation) -> dict[str, float]:
        """Of the policy after `epoch` epochs; returns the mean scores with their errors."""
        summary = result.summary()
        self.tracker.log("eval", epoch, summary | {"seconds": self.clock.lap()["seconds"]})
        images = {"images": thumbnails(result.images)}
        self.tracker.save_evaluation(epoch, result.scores | images, result.prompts)
        self.runtime.say(progress.evaluation(epoch, summary))
        return summary

    def epoch(
        self, epoch: int, samples: Gathered, credit: Credit, stats: dict[str, float]
    ) -> float:
        """stats: of the updates, by name; what they must hold is `ratio_dev`. Returns the mean reward."""
        reached = {"reward": samples.ladder} | samples.scores | samples.extras
        last = {name: column[:, -1] for name, column in reached.items()}
        values = summarise(last, samples.group_id.tolist())
        turning = credit.turning.float().mean(0).tolist()
        values |= {
            f"turning_{k}": share for k, share in zip(self.plan.window, turning, strict=True)
        }
        values |= stats | {"nfe": self.plan.epoch_nfe * epoch} | self.clock.lap()
        self.tracker.log("train", epoch, values)
        self.runtime.say(
            progress.summary(
                epoch, self.config.epochs, values, self.plan.groups * self.plan.group_size
            )
        )
        return values["reward"]

    def image_stats(self, pending: list[Pending], group_id: Tensor) -> dict[str, float]:
        """What the alarms know of an epoch's images; group_id (N,) of all ranks' samples."""
        small = in_order(self.runtime, self.plan, [p.coarse for p in pending])
        fine = in_order(self.runtime, self.plan, [p.detail for p in pending])
        return {"diversity": diversity(small, group_id), "high_frequency": fine.mean().item()}

    def keeps_ladders(self, epoch: int) -> bool:
        """Whether that epoch's ladders are kept, every `tracking.images_every`-th and the last."""
        return epoch % self.config.tracking.images_every == 0 or epoch == self.config.epochs

    def ladders(
        self,
        epoch: int,
        samples: Gathered,
        credit: Credit,
        advantages: Tensor,
        pending: list[Pending],
        prompts: list[str],
    ) -> None:
        """The epoch's ladders with their columns' states, and thumbnails of the first groups; prompts: of the set."""
        small = [thumbnails(p.images) for p in pending if p.images is not None]
        first = in_order(self.runtime, self.plan, small)[
            : self.config.tracking.groups * self.plan.group_size
        ]
        tensors = {
            "ladder": samples.ladder,
            "states": torch.tensor(self.plan.completion.states),
            "reward": credit.reward,
            "increment": credit.increment,
            "turning": credit.turning,
            "advantage": advantages,
            "group_id": samples.group_id,
            "images": first,
        }
        shown = samples.group_id[: len(first)].tolist()
        self.tracker.save_ladders(epoch, tensors, [prompts[i] for i in shown])
