"""One trainer for every algorithm: the epoch, told as a story.

prompts -> rollout (sample, decode, score on a thread) -> ladder -> gather -> credit -> advantage -> update -> EMA.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tp_grpo import agreement, credit, models, prompts, sharding, tracking
from tp_grpo.advantage import group_normalize, zero_std_share
from tp_grpo.evaluate import evaluate
from tp_grpo.keeper import Keeper
from tp_grpo.learner import Learner, check_optimizer
from tp_grpo.plan import Plan, make_plan
from tp_grpo.preemption import Preempted, Preemption
from tp_grpo.rewards import Rewards, RewardSet
from tp_grpo.rollout import Pending, conditions_of, encode_once, roll_out
from tp_grpo.runtime import Runtime
from tp_grpo.types import Credit, Rollout
from tp_grpo.update import Updater


class Trainer:
    """Built from a config alone. What is wrong with it is a ValueError, before weights load where that can be known."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.folder = Path(config.output_dir) / config.run_name
        if not config.run_name:
            raise ValueError("run_name is empty: it names the run's folder below output_dir")
        trackers = tracking.check_trackers(config.tracking.trackers)
        self.runtime = Runtime(
            config.model.dtype,
            trackers,
            str(self.folder),
            timeout_s=config.runtime.timeout_s,
            shard=sharding.asked(os.environ, config),
        )
        self.plan: Plan = make_plan(config, self.runtime.world_size, branches=credit.needs_branches(config.credit.name))
        check_optimizer(config.train.optimizer)
        self.prompts = prompts.load(config.prompts.train, field="prompts.train")
        self.eval_prompts = prompts.load(config.prompts.eval, field="prompts.eval")
        prompts.epoch_groups(len(self.prompts), seed=0, epoch=0, groups=self.plan.groups)
        self.rewards = RewardSet(config.rewards.scorers.to_dict())
        for chosen in (self.prompts, self.eval_prompts):
            self.rewards.check_prompts(chosen.prompts, chosen.metadata)
        settings = json.loads(config.to_json_best_effort())
        self.keeper = Keeper(self.runtime, self.folder, config.checkpoint, settings)
        self.checkpoints = self.keeper.checkpoints
        self.preemption = Preemption(self.runtime, config.checkpoint.grace)
        self.runtime.seed(config.seed)
        self._build()
        self.tracker = tracking.Tracker(
            self.runtime.accelerator, self.folder, settings, config.tracking.project, self.keeper.found
        )
        self.clock = tracking.Clock()  # last: loading is no part of the first epoch

    def _build(self) -> None:
        c = self.config
        self.backbone = models.load(c.model, self.runtime.device)
        if c.model.text_encoders == "drop":
            self._encode_ahead()
        self.plan = self.plan.at(self.backbone.sigmas(self.plan.steps).tolist())
        self.learner = Learner(self.runtime, self.backbone, c)
        self.updater = Updater(
            self.runtime.accelerator,
            self.learner,
            self.plan,
            sample=c.sample,
            train=c.train,
            boundary=self.preemption.boundary,
        )

    def _encode_ahead(self) -> None:
        """Every prompt of the run into the cache on disk, each rank its share."""
        together = list(dict.fromkeys(self.prompts.prompts + self.eval_prompts.prompts))
        self.runtime.say(f"encoding {len(together)} prompts into {self.config.model.embeddings_cache}, once")
        self.backbone.encode_ahead(together[self.runtime.rank :: self.runtime.world_size])
        self.runtime.accelerator.wait_for_everyone()

    def run(self) -> Path:
        """Train to `config.epochs` and write the report; returns its path.

        Raises Preempted when a signal stopped it: the newest checkpoint is whole, and another Trainer goes on from it.
        """
        with self.preemption.watching():
            start = self._resume()
            for epoch in range(start, self.config.epochs):
                with self.preemption.epoch(evaluates=self._evaluation_due(epoch + 1)):
                    self._epoch(epoch)
                    self._close(epoch + 1)
                if epoch + 1 < self.config.epochs:
                    self.preemption.between_epochs()
            return self._finish()

    def _resume(self) -> int:
        """Load the checkpoint found and make up for evaluations that are missing; returns the epoch to begin with."""
        start = self.keeper.restore(self.learner)
        self.tracker.rewind(start if start else -1)
        self._check_weights("at the start")
        first, here = self.runtime.share([self.tracker.has_evaluation(epoch) for epoch in (0, start)])[0]
        if not first:
            with self.learner.policy.reference():
                self.keeper.check_best(self._evaluate(0))
        if start and not here and self._evaluation_due(start):
            self.keeper.add_scores(start, self._evaluate(start))
        return start

    def _evaluation_due(self, epoch: int) -> bool:
        return epoch % self.config.eval.every == 0 or epoch == self.config.epochs

    def _close(self, epoch: int) -> None:
        """Evaluate if it is due, and save; an evaluation that is stopped costs itself, not the epoch."""
        scores, stopped = {}, None
        if self._evaluation_due(epoch):
            try:
                scores = self._evaluate(epoch)
            except Preempted as why:
                stopped = why
        self._save(epoch, scores)
        if stopped:
            raise stopped

    def _save(self, epoch: int, scores: dict[str, float]) -> None:
        self.keeper.save(self.learner, epoch, scores, self.tracker.run_id)

    def _epoch(self, epoch: int) -> None:
        done = epoch + 1
        keep = done % self.config.tracking.images_every == 0 or done == self.config.epochs
        groups = prompts.epoch_groups(len(self.prompts), seed=self.config.seed, epoch=epoch, groups=self.plan.groups)
        self._check_plan(epoch, groups)
        with self.clock.phase("rollout"):
            pending = self._roll_out(epoch, groups, keep_images=keep)
        with self.clock.phase("score_wait"):
            finished = [p.finish() for p in self.preemption.between(pending)]
            self.rewards.settle(self.runtime.share)
        rollouts = [rollout for rollout, _ in finished]
        ladder, group_id = self._gather([r.ladder for r in rollouts]), self._gather([r.group_id for r in rollouts])
        step_credit, advantages = self._credit(ladder, group_id)
        failed = self.rewards.check_failed(self._gathered_scores(rollouts), self.config.rewards.max_failed)
        with self.clock.phase("update"):
            stats = self._update(rollouts, advantages)
        self._check_weights(f"after the updates of epoch {done}")
        if keep:
            self._keep_ladders(done, pending, ladder, group_id, step_credit, advantages)
        zero_std = zero_std_share(step_credit.reward, group_id).item()
        self._log(done, [r for _, r in finished], step_credit, stats | {"failed": failed, "zero_std": zero_std})

    def _check_plan(self, epoch: int, groups: list[int]) -> None:
        """All ranks are about to do the same: an epoch of the same prompts and window."""
        texts = [self.prompts.prompts[group] for group in groups]
        own = {"as epoch": epoch + 1, "as plan": self.plan, "as prompt ids": groups, "as prompts": texts}
        advice = "every node must have the same prompt files and the same version of this repository"
        agreement.check(self.runtime, own, advice)

    def _check_weights(self, when: str) -> None:
        agreement.check_weights(self.runtime, self.learner.policy.parameters, when)

    def _roll_out(self, epoch: int, groups: list[int], *, keep_images: bool) -> list[Pending]:
        """This rank's share of the epoch; scoring goes on beside it."""
        c = self.config
        batches = [
            self.prompts.batch([groups[slot] for slot, _ in slots], [member for _, member in slots])
            for slots in self.plan.batches(self.runtime.rank)
        ]
        texts = [prompt for batch in batches for prompt in batch.prompts]
        conditions = encode_once(self.backbone, texts)
        return [
            roll_out(
                self.backbone,
                self.rewards,
                batch,
                conditions_of(conditions, batch.prompts, self.backbone.device),
                plan=self.plan,
                sample=c.sample,
                key=(c.seed, epoch),
                keep_images=keep_images,
            )
            for batch in self.preemption.between(self.runtime.bar(batches, f"epoch {epoch + 1} sample"))
        ]

    def _credit(self, ladder: Tensor, group_id: Tensor) -> tuple[Credit, Tensor]:
        """Credit and advantages (N, K) of all ranks' samples."""
        c = self.config
        options = {name: c.credit[name] for name in credit.METHODS[c.credit.name].options}
        steps = credit.assign(
            c.credit.name,
            ladder,
            steps=len(self.plan.window),
            states=self.plan.states,
            group_id=group_id,
            **options,
        )
        norm = c.advantage
        return steps, group_normalize(steps.reward, group_id, global_std=norm.global_std, clip=norm.clip)

    def _gather(self, rows: list[Tensor]) -> Tensor:
        """All ranks' rows on the CPU, ordered by (group, member): a result cannot depend on who held a sample."""
        gathered = self.runtime.gather(torch.cat(rows).to(self.runtime.device)).cpu()
        held = [slot for rank in range(self.plan.world_size) for batch in self.plan.batches(rank) for slot in batch]
        order = torch.tensor([slot * self.plan.group_size + member for slot, member in held])
        ordered = torch.empty_like(gathered)
        ordered[order] = gathered
        return ordered

    def _gathered_scores(self, rollouts: list[Rollout]) -> dict[str, Tensor]:
        return {name: self._gather([r.rewards[name] for r in rollouts]) for name in rollouts[0].rewards}

    def _update(self, rollouts: list[Rollout], advantages: Tensor) -> dict[str, float]:
        """All updates of the epoch; returns their mean statistics, ratio_dev that of the unmoved policy."""
        per_update = self.plan.batches_per_update
        own = [
            advantages[[slot * self.plan.group_size + member for slot, member in slots]].to(self.runtime.device)
            for slots in self.plan.batches(self.runtime.rank)
        ]
        rounds = range(self.config.train.inner_epochs * self.plan.updates)
        reports = []
        for number in self.runtime.bar(rounds, "update"):
            first = number % self.plan.updates * per_update
            part = slice(first, first + per_update)
            reports.append(self.updater.step(rollouts[part], own[part], fresh=number == 0))
            if reports[-1]["skipped"]:
                self.runtime.say(
                    f"update {self.learner.updates + 1}: the gradient is not finite; the update is left out"
                )
            self.learner.updated()
        means = {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
        return means | {"ratio_dev": reports[0]["ratio_dev"], "ratio_dev_moved": reports[-1]["ratio_dev"]}

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Held-out prompts, seeded noise, EMA weights; returns the mean scores."""
        averaged = self.learner.averaged() if epoch else contextlib.nullcontext()
        with self.clock.phase("evaluate"), self.preemption.evaluation(), averaged:
            result = evaluate(
                self.runtime,
                self.backbone,
                self.rewards,
                self.eval_prompts,
                config=self.config,
                boundary=self.preemption.boundary,
            )
        self.rewards.check_failed(result.scores, self.config.rewards.max_failed)
        summary = result.summary()
        self.tracker.log("eval", epoch, summary | {"seconds": self.clock.lap()["seconds"]})
        images = {"images": tracking.thumbnails(result.images)}
        self.tracker.save_evaluation(epoch, result.scores | images, result.prompts)
        shown = [name for name in summary if not name.endswith("_se")]
        parts = (f"{name.rpartition('/')[2]} {summary[name]:.3f} ± {summary[name + '_se']:.3f}" for name in shown)
        self.runtime.say(f"held-out after epoch {epoch}: " + "  ".join(parts))
        return summary

    def _log(self, epoch: int, rewards: list[Rewards], step_credit: Credit, stats: dict[str, float]) -> None:
        reached = {"reward": self._gather([r.total for r in rewards])[:, -1]}
        for name in self.rewards.extras:
            reached[name] = self._gather([r.extra(name) for r in rewards])[:, -1]
        values = {name: column.nanmean().item() for name, column in reached.items() if not column.isnan().all()}
        turning = step_credit.turning.float().mean(0).tolist()
        values |= {f"turning_{k}": share for k, share in zip(self.plan.window, turning, strict=True)}
        values |= stats | {"updates": self.learner.updates, "nfe": self.plan.epoch_nfe * epoch}
        values |= self.clock.lap()
        self.tracker.log("train", epoch, values)
        left = (self.config.epochs - epoch) * values["seconds"]
        self.runtime.say(
            f"epoch {epoch}/{self.config.epochs}  reward {values['reward']:.3f}  "
            f"turning {sum(turning) / len(turning):.0%}  ratio_dev {stats['ratio_dev']:.1e}  "
            f"{values['seconds']:.1f} s (sample {values['seconds_rollout']:.1f}, score wait "
            f"{values['seconds_score_wait']:.1f}, update {values['seconds_update']:.1f})  left {left / 60:.0f} min"
        )

    def _keep_ladders(
        self,
        epoch: int,
        pending: list[Pending],
        ladder: Tensor,
        group_id: Tensor,
        step_credit: Credit,
        advantages: Tensor,
    ) -> None:
        """All ladders of the epoch, and thumbnails of the completions of the first groups."""
        small = [tracking.thumbnails(p.images) for p in pending if p.images is not None]
        first = self._gather(small)[: self.config.tracking.groups * self.plan.group_size]
        tensors = {
            "ladder": ladder,
            "reward": step_credit.reward,
            "increment": step_credit.increment,
            "turning": step_credit.turning,
            "advantage": advantages,
            "group_id": group_id,
            "images": first,
        }
        shown = group_id[: len(first)].tolist()
        self.tracker.save_ladders(epoch, tensors, [self.prompts.prompts[i] for i in shown])

    def _finish(self) -> Path:
        """Export the averaged policy, write the report, close the trackers."""
        page = self.keeper.finish(self.learner)
        self.rewards.close()
        self.runtime.accelerator.end_training()
        return page
