"""One trainer for every algorithm: the epoch, told as a story.

prompts -> rollout (sample, decode, score on threads) -> gather the reward ladders -> credit ->
advantage -> update -> EMA.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from tp_grpo import models
from tp_grpo.data import prompts
from tp_grpo.evaluate import standing
from tp_grpo.evaluate.held_out import evaluate
from tp_grpo.method.advantage import group_std, zero_std_share
from tp_grpo.models.conditions import Conditions, conditions_of
from tp_grpo.models.families import adapter
from tp_grpo.observe import tracking
from tp_grpo.observe.journal import Journal
from tp_grpo.plan import Plan, make_plan
from tp_grpo.ranks import agreement, sharding
from tp_grpo.ranks.clock import Clock
from tp_grpo.ranks.preemption import Preempted, Preemption
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardError, RewardSet
from tp_grpo.run import contents
from tp_grpo.run.alarm_guard import AlarmGuard
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.settings import Settings
from tp_grpo.train.credit import credit_steps
from tp_grpo.train.forks import Forks
from tp_grpo.train.gather import gather
from tp_grpo.train.learner import Learner, check_learner
from tp_grpo.train.rollout import Pending, roll_out
from tp_grpo.train.update import Updater, mean_report
from tp_grpo.train.whole_groups import WholeGroups
from tp_grpo.types import MustStop, PromptBatch, Rollout


class Trainer:
    """Built from a config alone; its mistakes are ValueErrors, before weights load if possible."""

    def __init__(self, config: ConfigDict) -> None:
        self.config = settings = Settings.read(config)
        self.folder = Path(settings.output_dir) / settings.run_name
        tracking.go_offline_without_login(settings.tracking.trackers)
        self.runtime = Runtime(
            settings.model.dtype,
            settings.tracking.trackers,
            str(self.folder),
            shard=sharding.asked(os.environ, settings),
            **vars(settings.runtime),
        )
        self.runtime.together(self._read)  # what is missing may be missing on one node alone
        stored = settings.as_dict()
        self.preemption = Preemption(self.runtime, settings.checkpoint.grace)
        self.run_folder = RunFolder(
            self.runtime, self.folder, settings.checkpoint, stored | self.contents, self.preemption
        )
        self.clock = Clock(self.runtime.synchronize, self.runtime.all_sum)
        with self.preemption.watching():  # a signal while weights load counts at the first batch
            self._build(stored)
        self.clock.lap()  # loading is no part of the first epoch

    def _read(self) -> None:
        """Read what the config names, before any weights load."""
        config = self.config
        self.plan: Plan = make_plan(config, self.runtime.world_size)
        for caution in config.cautions(classifier_free=adapter(config.model.type).classifier_free):
            self.runtime.say(f"caution: {caution}")
        check_learner(config)
        self.prompts = prompts.load(config.prompts.train, field="prompts.train")
        self.eval_prompts = prompts.load(config.prompts.eval, field="prompts.eval")
        prompts.epoch_groups(len(self.prompts), seed=0, epoch=0, groups=self.plan.groups)
        self.rewards = RewardSet(config.rewards.scorers, config.group_sizes)
        for known in self._prompt_sets().values():
            self.rewards.check_prompts(known.prompts, known.metadata)
        self.contents = contents.of(config, self._prompt_sets())

    def _prompt_sets(self) -> dict[str, prompts.PromptSet]:
        return {"prompts.train": self.prompts, "prompts.eval": self.eval_prompts}

    def _build(self, stored: dict[str, Any]) -> None:
        c = self.config
        self.runtime.seed(c.seed)
        self.backbone = self.runtime.together(lambda: models.load(c.model, self.runtime.device))
        if c.model.text_encoders == "drop":
            self._encode_ahead()
        resident = c.model.text_encoders != "offload" or self.runtime.device.type == "cpu"
        self.conditions = Conditions(self.backbone, ahead=resident)
        self.plan = self.plan.at(self.backbone.sigmas(self.plan.steps).tolist())
        self.learner = Learner(self.runtime, self.backbone, c)
        self.forks = Forks(self.plan, self.learner, c)
        accelerator, origin = self.runtime.accelerator, self.run_folder.origin
        self.updater = Updater(
            accelerator,
            self.learner,
            self.plan,
            c,
            boundary=self.preemption.boundary,
            clock=self.clock,
        )
        judged = standing.settings(c, self.contents)
        self.tracker = tracking.Tracker(
            accelerator, self.folder, stored, self.plan.summary, c.tracking.project, origin, judged
        )
        self.journal = Journal(self.runtime, self.plan, self.tracker, self.clock, c)
        self.alarm_guard = AlarmGuard(self.runtime, self.folder, self.run_folder, c)

    def _encode_ahead(self) -> None:
        """Encode every prompt of the run into the cache on disk, each rank its share."""
        texts = list(dict.fromkeys(self.prompts.prompts + self.eval_prompts.prompts))
        cache = self.config.model.embeddings_cache
        self.runtime.say(f"encoding {len(texts)} prompts into {cache}, once")
        self.backbone.encode_ahead(texts[self.runtime.rank :: self.runtime.world_size])
        self.runtime.accelerator.wait_for_everyone()

    def run(self) -> Path:
        """Train to `config.epochs` and write the report; returns its path.

        Raises Preempted when a signal stopped it; another Trainer resumes from its checkpoint.
        """
        with self.preemption.watching(), contextlib.closing(self.run_folder):
            try:
                self._train()
            except Preempted:
                self.run_folder.settle()  # a checkpoint that was not written is the worse news
                raise
            except MustStop:
                # A rank that left now would make the launcher kill rank 0 while it writes.
                self.runtime.on_main(self.run_folder.close)
                raise
            return self._finish()

    def _train(self) -> None:
        epochs = self.runtime.epochs(self._resume(), self.config.epochs)
        for epoch in epochs:
            with self.preemption.epoch(evaluates=self._evaluation_due(epoch + 1)):
                epochs.set_postfix_str(f"reward {self._epoch(epoch):.3f}")
                self._close(epoch + 1)
            self.alarm_guard.check()
            if epoch + 1 < self.config.epochs:
                self.preemption.between_epochs()

    def _resume(self) -> int:
        """Load the checkpoint, run the evaluations that are missing; returns the first epoch."""
        start = self.run_folder.restore(self.learner)
        # A checkpoint from before this was counted has no count.
        self.learner.evaluations = self.learner.evaluations or self.plan.epoch_nfe * start
        self.tracker.rewind(start if start else -1, self.run_folder.branches)
        self._check_weights("at the start")
        evaluated = [self.tracker.has_evaluation(epoch) for epoch in (0, start)]
        base_done, start_done = self.runtime.all_gather_object(evaluated)[0]
        if not base_done:
            with self.learner.policy.reference():
                self.run_folder.check_best(self._evaluate(0))
        if start and not start_done and self._evaluation_due(start):
            self.run_folder.add_scores(start, self._evaluate(start))
        return start

    def _evaluation_due(self, epoch: int) -> bool:
        return epoch % self.config.eval.every == 0 or epoch == self.config.epochs

    def _close(self, epoch: int) -> None:
        """Evaluate if it is due, and save; a failed evaluation does not cost the epoch."""
        scores, stopped = {}, None
        if self._evaluation_due(epoch):
            try:
                scores = self._evaluate(epoch)
            except (Preempted, RewardError) as error:
                stopped = error
        with self.clock.phase("checkpoint"):
            self.run_folder.save(self.learner, epoch, scores, self.tracker.run_id)
        if stopped:
            raise stopped

    def _epoch(self, epoch: int) -> float:
        """One epoch; returns its mean reward."""
        done = epoch + 1
        keep = self.journal.keeps_ladders(done)
        groups = self._groups(epoch)
        self.plan = self.journal.plan = self.plan.in_epoch(epoch, self.config.seed)
        forks = self.forks.draw(epoch, groups)
        texts = [self.prompts.prompts[group] for group in groups]
        facts = {"as prompt ids": groups, "as prompts": texts, "as fork steps": forks}
        agreement.check_epoch(self.runtime, done, self.plan.facts | facts)
        with self.clock.phase("rollout"), self.learner.old.holding():
            pending = self._roll_out(epoch, groups, forks, keep_images=keep)
        with self.clock.phase("score_wait"):
            rewards = [p.finish() for p in self.preemption.between(pending)]
            self.rewards.settle(self.runtime.all_gather_object)
        samples = gather(self.runtime, self.plan, groups, rewards, self.rewards.extras)
        at = self.forks.of_samples(forks)
        steps, advantages = credit_steps(self.config, self.plan, samples, at)
        self.learner.evaluations += self.plan.evaluations(forks)
        stats = {
            "nfe": self.learner.evaluations,
            **self.forks.learn(forks, samples.ladder[:, -1]),
            "failed": self.rewards.check_failed(samples.scores, self.config.rewards.max_failed),
            "group_std": group_std(samples.ladder[:, -1:], samples.group_id).item(),
            "zero_std": zero_std_share(steps.reward, samples.group_id).item(),
        }
        following = self._batches(self._groups(done)) if done < self.config.epochs else []
        texts = [prompt for batch in following for prompt in batch.prompts]
        with self.clock.phase("update"), self.conditions.making(texts):
            stats |= self._update(done, [p.rollout for p in pending], advantages)
            self.learner.follow()
        self._check_weights(f"after the updates of epoch {done}")
        if keep:
            known, kept = self.prompts.prompts, self.forks.kept(forks)
            self.journal.ladders(done, samples, steps, advantages, pending, known, kept)
        stats |= self.journal.image_stats(pending, samples.group_id)
        return self.journal.epoch(done, samples, steps, stats | {"updates": self.learner.updates})

    def _groups(self, epoch: int) -> list[int]:
        """The epoch's prompts, by their index in the prompt set."""
        seed, count = self.config.seed, len(self.prompts)
        return prompts.epoch_groups(count, seed=seed, epoch=epoch, groups=self.plan.groups)

    def _batches(self, groups: list[int]) -> list[PromptBatch]:
        """This rank's share of an epoch of these groups."""
        return self.prompts.batches(groups, self.plan.batches(self.runtime.rank))

    def _check_weights(self, when: str) -> None:
        agreement.check_weights(self.runtime, self.learner.policy.parameters, when)

    def _roll_out(
        self, epoch: int, groups: list[int], forks: Sequence[int] = (), *, keep_images: bool
    ) -> list[Pending]:
        """This rank's share of the epoch; scoring runs at the same time. forks: by group."""
        c, plan, batches = self.config, self.plan, self._batches(groups)
        fork_of = dict(zip(groups, forks, strict=False))
        whole = WholeGroups(self.runtime, plan, self.rewards)
        with self.clock.phase("encode"):
            conditions = self.conditions.of([text for b in batches for text in b.prompts])
        each = plan.batch_size * plan.members * plan.world_size
        bar = self.runtime.bar(batches, "sample", unit="images", each=each)
        return [
            roll_out(
                self.backbone,
                self.rewards,
                batch,
                conditions_of(conditions, batch.prompts[:: plan.members], self.backbone.device),
                plan=plan,
                config=c,
                key=(c.seed, epoch),
                keep_images=keep_images,
                forks=torch.tensor([fork_of.get(group, 0) for group in batch.group_id.tolist()]),
                clock=self.clock,
                whole=whole,
            )
            for batch in self.preemption.between(bar)
        ]

    def _update(self, epoch: int, rollouts: list[Rollout], advantages: Tensor) -> dict[str, float]:
        """All updates of the epoch; returns their mean statistics."""
        self.updater.begin(self.plan)
        rounds = range(self.config.train.inner_epochs * self.plan.updates)
        reports = []
        for number in self.runtime.bar(rounds, "update", unit="updates"):
            report = self.updater.update(number, rollouts, advantages)
            reports.append(report)
            if report["skipped"]:
                update = self.learner.updates + 1
                self.runtime.say(f"update {update} is skipped: its gradient is not finite")
            self.learner.updated()
            self.tracker.write("update", epoch, {"update": self.learner.updates} | report)
        return mean_report(reports)

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
