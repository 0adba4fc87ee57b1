"""One trainer for every algorithm: the epoch, told as a story.

prompts -> rollout (sample, decode, score on a thread) -> ladder -> gather -> credit -> advantage -> update -> EMA.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from tp_grpo import models
from tp_grpo.data import prompts
from tp_grpo.evaluate.held_out import evaluate
from tp_grpo.method import credit
from tp_grpo.method.advantage import group_normalize, group_std, zero_std_share
from tp_grpo.observe import tracking
from tp_grpo.observe.journal import Journal
from tp_grpo.plan import Plan, make_plan
from tp_grpo.ranks import agreement, sharding
from tp_grpo.ranks.agreement import MustStop
from tp_grpo.ranks.clock import Clock
from tp_grpo.ranks.preemption import Preempted, Preemption
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardError, RewardSet
from tp_grpo.run.alarm_guard import AlarmGuard
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.train.gather import gather
from tp_grpo.train.learner import Learner, check_optimizer
from tp_grpo.train.rollout import Conditions, Pending, conditions_of, roll_out
from tp_grpo.train.update import Updater
from tp_grpo.types import Credit, PromptBatch, Rollout


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
        self.runtime.together(self._read)  # what is missing may be missing on one node alone
        settings = json.loads(config.to_json_best_effort())
        content = {f"{name} (content)": used.digest for name, used in self._prompt_sets().items()}
        self.preemption = Preemption(self.runtime, config.checkpoint.grace)
        self.run_folder = RunFolder(
            self.runtime, self.folder, config.checkpoint, settings | content, self.preemption
        )
        self.checkpoints = self.run_folder.checkpoints
        self.clock = Clock(self.runtime.synchronize, self.runtime.all_sum)
        with (
            self.preemption.watching()
        ):  # loading takes minutes; what is asked meanwhile counts at the first batch
            self._build(settings)
        self.clock.lap()  # loading is no part of the first epoch

    def _read(self) -> None:
        """What the config names, before any weights load."""
        config = self.config
        self.plan: Plan = make_plan(
            config, self.runtime.world_size, branches=credit.needs_branches(config.credit.name)
        )
        check_optimizer(config.train.optimizer)
        self.prompts = prompts.load(config.prompts.train, field="prompts.train")
        self.eval_prompts = prompts.load(config.prompts.eval, field="prompts.eval")
        prompts.epoch_groups(len(self.prompts), seed=0, epoch=0, groups=self.plan.groups)
        self.rewards = RewardSet(config.rewards.scorers.to_dict())
        if not any(self.rewards.weights.values()):
            raise ValueError(
                "rewards.scorers: every weight is 0, so there is nothing to train on; give one a weight"
            )
        for chosen in self._prompt_sets().values():
            self.rewards.check_prompts(chosen.prompts, chosen.metadata)

    def _prompt_sets(self) -> dict[str, prompts.PromptSet]:
        return {"prompts.train": self.prompts, "prompts.eval": self.eval_prompts}

    def _build(self, settings: dict[str, Any]) -> None:
        c = self.config
        self.runtime.seed(c.seed)
        self.backbone = self.runtime.together(lambda: models.load(c.model, self.runtime.device))
        if c.model.text_encoders == "drop":
            self._encode_ahead()
        resident = c.model.text_encoders != "offload" or self.runtime.device.type == "cpu"
        self.conditions = Conditions(self.backbone, ahead=resident)
        self.plan = self.plan.at(self.backbone.sigmas(self.plan.steps).tolist())
        self.learner = Learner(self.runtime, self.backbone, c)
        self.updater = Updater(
            self.runtime.accelerator,
            self.learner,
            self.plan,
            sample=c.sample,
            train=c.train,
            boundary=self.preemption.boundary,
            clock=self.clock,
        )
        self.tracker = tracking.Tracker(
            self.runtime.accelerator,
            self.folder,
            settings,
            self.plan.rows,
            c.tracking.project,
            self.run_folder.origin,
        )
        self.journal = Journal(self.runtime, self.plan, self.tracker, self.clock, c)
        self.alarm_guard = AlarmGuard(self.runtime, self.folder, self.run_folder, c)

    def _encode_ahead(self) -> None:
        """Every prompt of the run into the cache on disk, each rank its share."""
        together = list(dict.fromkeys(self.prompts.prompts + self.eval_prompts.prompts))
        self.runtime.say(
            f"encoding {len(together)} prompts into {self.config.model.embeddings_cache}, once"
        )
        self.backbone.encode_ahead(together[self.runtime.rank :: self.runtime.world_size])
        self.runtime.accelerator.wait_for_everyone()

    def run(self) -> Path:
        """Train to `config.epochs` and write the report; returns its path.

        Raises Preempted when a signal stopped it: the newest checkpoint is whole, and another Trainer goes on from it.
        """
        with self.preemption.watching(), contextlib.closing(self.run_folder):
            try:
                self._train()
            except Preempted:
                self.run_folder.settle()  # where the checkpoint is not there, that is the news
                raise
            except MustStop:
                self.runtime.on_main(
                    self.run_folder.close
                )  # or the launcher would kill rank 0 for the others' leaving
                raise
            return self._finish()

    def _train(self) -> None:
        start = self._resume()
        epochs = self.runtime.epochs(start, self.config.epochs)
        for epoch in epochs:
            with self.preemption.epoch(evaluates=self._evaluation_due(epoch + 1)):
                epochs.set_postfix_str(f"reward {self._epoch(epoch):.3f}")
                self._close(epoch + 1)
            self.alarm_guard.check()
            if epoch + 1 < self.config.epochs:
                self.preemption.between_epochs()

    def _resume(self) -> int:
        """Load the checkpoint found and make up for evaluations that are missing; returns the epoch to begin with."""
        start = self.run_folder.restore(self.learner)
        self.tracker.rewind(start if start else -1)
        self._check_weights("at the start")
        first, here = self.runtime.all_gather_object(
            [self.tracker.has_evaluation(epoch) for epoch in (0, start)]
        )[0]
        if not first:
            with self.learner.policy.reference():
                self.run_folder.check_best(self._evaluate(0))
        if start and not here and self._evaluation_due(start):
            self.run_folder.add_scores(start, self._evaluate(start))
        return start

    def _evaluation_due(self, epoch: int) -> bool:
        return epoch % self.config.eval.every == 0 or epoch == self.config.epochs

    def _close(self, epoch: int) -> None:
        """Evaluate if it is due, and save; an evaluation that is stopped or fails costs itself, not the epoch."""
        scores, stopped = {}, None
        if self._evaluation_due(epoch):
            try:
                scores = self._evaluate(epoch)
            except (Preempted, RewardError) as why:
                stopped = why
        self._save(epoch, scores)
        if stopped:
            raise stopped

    def _save(self, epoch: int, scores: dict[str, float]) -> None:
        with self.clock.phase("checkpoint"):
            self.run_folder.save(self.learner, epoch, scores, self.tracker.run_id)

    def _epoch(self, epoch: int) -> float:
        """Returns the mean reward."""
        done = epoch + 1
        keep = self.journal.keeps_ladders(done)
        groups = self._groups(epoch)
        self._check_plan(epoch, groups)
        with self.clock.phase("rollout"):
            pending = self._roll_out(epoch, groups, keep_images=keep)
        with self.clock.phase("score_wait"):
            finished = [p.finish() for p in self.preemption.between(pending)]
            self.rewards.settle(self.runtime.all_gather_object)
        samples = gather(self.runtime, self.plan, groups, finished, self.rewards.extras)
        step_credit, advantages = self._credit(samples.ladder, samples.group_id)
        failed = self.rewards.check_failed(samples.scores, self.config.rewards.max_failed)
        following = self._batches(self._groups(done)) if done < self.config.epochs else []
        with (
            self.clock.phase("update"),
            self.conditions.making([p for batch in following for p in batch.prompts]),
        ):
            stats = self._update(done, [rollout for rollout, _ in finished], advantages)
        self._check_weights(f"after the updates of epoch {done}")
        if keep:
            self.journal.ladders(
                done, samples, step_credit, advantages, pending, self.prompts.prompts
            )
        stats |= {
            "failed": failed,
            "group_std": group_std(samples.ladder[:, -1:], samples.group_id).item(),
        }
        stats["zero_std"] = zero_std_share(step_credit.reward, samples.group_id).item()
        stats |= self.journal.image_stats(pending, samples.group_id) | {
            "updates": self.learner.updates
        }
        return self.journal.epoch(done, samples, step_credit, stats)

    def _groups(self, epoch: int) -> list[int]:
        return prompts.epoch_groups(
            len(self.prompts), seed=self.config.seed, epoch=epoch, groups=self.plan.groups
        )

    def _batches(self, groups: list[int]) -> list[PromptBatch]:
        """This rank's share of an epoch of these groups."""
        return [
            self.prompts.batch([groups[slot] for slot, _ in slots], [member for _, member in slots])
            for slots in self.plan.batches(self.runtime.rank)
        ]

    def _check_plan(self, epoch: int, groups: list[int]) -> None:
        """All ranks are about to do the same: an epoch of the same prompts and window."""
        texts = [self.prompts.prompts[group] for group in groups]
        own = {
            f"plan.{field.name}": getattr(self.plan, field.name)
            for field in dataclasses.fields(self.plan)
        }
        own |= {"as epoch": epoch + 1, "as prompt ids": groups, "as prompts": texts}
        advice = (
            "every node must have the same prompt files and the same version of this repository"
        )
        agreement.check(self.runtime, own, advice)

    def _check_weights(self, when: str) -> None:
        agreement.check_weights(self.runtime, self.learner.policy.parameters, when)

    def _roll_out(self, epoch: int, groups: list[int], *, keep_images: bool) -> list[Pending]:
        """This rank's share of the epoch; scoring goes on beside it."""
        c, batches = self.config, self._batches(groups)
        with self.clock.phase("encode"):
            conditions = self.conditions.of(
                [prompt for batch in batches for prompt in batch.prompts]
            )
        bar = self.runtime.bar(
            batches, "sample", unit="images", each=self.plan.batch_size * self.plan.world_size
        )
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
                clock=self.clock,
            )
            for batch in self.preemption.between(bar)
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
        return steps, group_normalize(
            steps.reward, group_id, global_std=norm.global_std, clip=norm.clip
        )

    def _update(self, epoch: int, rollouts: list[Rollout], advantages: Tensor) -> dict[str, float]:
        """All updates of the epoch; returns their mean statistics, ratio_dev that of the unmoved policy."""
        per_update = self.plan.batches_per_update
        own = [
            advantages[[slot * self.plan.group_size + member for slot, member in slots]].to(
                self.runtime.device
            )
            for slots in self.plan.batches(self.runtime.rank)
        ]
        rounds = range(self.config.train.inner_epochs * self.plan.updates)
        reports = []
        for number in self.runtime.bar(rounds, "update", unit="updates"):
            first = number % self.plan.updates * per_update
            part = slice(first, first + per_update)
            reports.append(self.updater.step(rollouts[part], own[part], fresh=number == 0))
            if reports[-1]["skipped"]:
                self.runtime.say(
                    f"update {self.learner.updates + 1} is left out: its gradient is not finite"
                )
            self.learner.updated()
            self.tracker.write("update", epoch, {"update": self.learner.updates} | reports[-1])
        means = {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
        return means | {
            "ratio_dev": reports[0]["ratio_dev"],
            "ratio_dev_moved": reports[-1]["ratio_dev"],
        }

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Held-out prompts, seeded noise, EMA weights; returns the mean scores."""
        averaged = self.learner.averaged() if epoch else contextlib.nullcontext()
        with self.clock.phase("evaluate"), self.preemption.timed("evaluation"), averaged:
            result = evaluate(
                self.runtime,
                self.backbone,
                self.rewards,
                self.eval_prompts,
                config=self.config,
                boundary=self.preemption.boundary,
            )
        self.rewards.check_failed(result.scores, self.config.rewards.max_failed)
        return self.journal.evaluation(epoch, result)

    def _finish(self) -> Path:
        """Export the averaged policy, write the report, close the trackers."""
        page = self.run_folder.finish(self.learner)
        self.rewards.close()
        self.runtime.leave()
        return page
