"""What a run tells of its epochs and evaluations: metrics, a line on the terminal, the ladders with their pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tp_grpo import tracking
from tp_grpo.evaluate import Evaluation
from tp_grpo.gathered import Gathered, in_order
from tp_grpo.plan import Plan
from tp_grpo.rollout import Pending
from tp_grpo.runtime import Runtime
from tp_grpo.types import Credit


class Journal:
    """Called by all ranks; the main process writes. `clock` times the phases of what is told next."""

    def __init__(self, runtime: Runtime, plan: Plan, tracker: tracking.Tracker, config: Any) -> None:
        self.runtime, self.plan, self.tracker, self.config = runtime, plan, tracker, config
        self.clock = tracking.Clock()

    def evaluation(self, epoch: int, result: Evaluation) -> dict[str, float]:
        """Of the policy after `epoch` epochs; returns the mean scores with their errors."""
        summary = result.summary()
        self.tracker.log("eval", epoch, summary | {"seconds": self.clock.lap()["seconds"]})
        images = {"images": tracking.thumbnails(result.images)}
        self.tracker.save_evaluation(epoch, result.scores | images, result.prompts)
        shown = [name for name in summary if not name.endswith("_se")]
        parts = (f"{name.rpartition('/')[2]} {summary[name]:.3f} ± {summary[name + '_se']:.3f}" for name in shown)
        self.runtime.say(f"held-out after epoch {epoch}: " + "  ".join(parts))
        return summary

    def epoch(self, epoch: int, samples: Gathered, credit: Credit, stats: dict[str, float]) -> None:
        """stats: of the updates, by name; what they must hold is `ratio_dev`."""
        reached = {"reward": samples.ladder} | samples.extras
        last = {name: column[:, -1] for name, column in reached.items()}
        values = {name: column.nanmean().item() for name, column in last.items() if not column.isnan().all()}
        turning = credit.turning.float().mean(0).tolist()
        values |= {f"turning_{k}": share for k, share in zip(self.plan.window, turning, strict=True)}
        values |= stats | {"nfe": self.plan.epoch_nfe * epoch} | self.clock.lap()
        self.tracker.log("train", epoch, values)
        left = (self.config.epochs - epoch) * values["seconds"]
        self.runtime.say(
            f"epoch {epoch}/{self.config.epochs}  reward {values['reward']:.3f}  "
            f"turning {sum(turning) / len(turning):.0%}  ratio_dev {stats['ratio_dev']:.1e}  "
            f"{values['seconds']:.1f} s (sample {values['seconds_rollout']:.1f}, score wait "
            f"{values['seconds_score_wait']:.1f}, update {values['seconds_update']:.1f})  left {left / 60:.0f} min"
        )

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
        """All ladders of the epoch, and thumbnails of the completions of the first groups; prompts: of the set."""
        small = [tracking.thumbnails(p.images) for p in pending if p.images is not None]
        first = in_order(self.runtime, self.plan, small)[: self.config.tracking.groups * self.plan.group_size]
        tensors = {
            "ladder": samples.ladder,
            "reward": credit.reward,
            "increment": credit.increment,
            "turning": credit.turning,
            "advantage": advantages,
            "group_id": samples.group_id,
            "images": first,
        }
        shown = samples.group_id[: len(first)].tolist()
        self.tracker.save_ladders(epoch, tensors, [prompts[i] for i in shown])
