"""A run's folder: one process group at a time, which checkpoint it goes on from, what is saved and exported."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tp_grpo import report
from tp_grpo.observe import model_card
from tp_grpo.ranks import agreement
from tp_grpo.ranks.preemption import Preemption
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardError
from tp_grpo.store import checkpoint, compare, files
from tp_grpo.train.learner import Learner


class RunFolder:
    """`found` is the checkpoint to go on from, None for a run that begins; it is let go of once it is restored.

    It has no tracker id where the run's curves do not go on from it: it is another run's, or an earlier one.
    A checkpoint is copied into host memory and written beside the next epoch, on a thread of rank 0; whoever reads
    `checkpoints` while the run goes on must `settle` first.
    """

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        options: Any,
        settings: dict[str, Any],
        preemption: Preemption,
    ) -> None:
        """options: `config.checkpoint`; settings: the whole config, for the checkpoints; preemption: times the writing.

        Raises ValueError for a run that cannot or must not be gone on with or that is in work already,
        DisagreementError when ranks see other checkpoints or have another config.
        """
        self.runtime, self.folder, self.options, self.settings = runtime, folder, options, settings
        self.preemption = preemption
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None  # on rank 0
        self.checkpoints = checkpoint.Checkpoints(
            folder / "checkpoints", options.keep_every, options.keep, options.best
        )
        agreement.check(
            runtime,
            {f"config.{name} =": value for name, value in compare.flatten(settings).items()},
            "every node must be started with the same command, from the same version of this repository",
        )
        self._hold()
        self.found = self._find(options.resume)
        agreement.check(
            runtime,
            {"as last epoch": self.found.epoch if self.found else "none"},
            f"every node must see the same output_dir: is {folder} on a file system that all share?",
        )

    def _hold(self) -> None:
        """Two runs in one folder would remove each other's checkpoints."""
        refused, self._lock = "", None
        if self.runtime.is_main:
            try:
                self._lock = files.hold(self.folder / ".lock")
            except ValueError as error:
                refused = str(error)
        refused = self.runtime.all_gather_object(refused)[0]
        if refused:
            raise ValueError(
                f"{refused}: wait for that run or stop it, or give this one another run_name"
            )

    def _find(self, how: str) -> checkpoint.Checkpoint | None:
        if how == "never":
            if self.checkpoints.epochs():
                raise ValueError(
                    f"checkpoint.resume = 'never', but {self.folder} holds a run at epoch "
                    f"{self.checkpoints.epochs()[-1]}; give another run_name, or move that folder away"
                )
            return None
        found = self.checkpoints.newest() if how == "auto" else self._begun_from(how)
        if found:
            branches = how != "auto" and self._is_anothers(how)
            compare.check_same_run(
                found.config, self.settings, Path(how) if branches else self.folder, branches
            )
            checkpoint.warn_of_versions(found)
        return found

    def _is_anothers(self, how: str) -> bool:
        """Whether the run begins, and now, with a checkpoint of another."""
        there = Path(how).resolve().parent != self.checkpoints.folder.resolve()
        return there and not self.checkpoints.came_from(how)

    def _begun_from(self, how: str) -> checkpoint.Checkpoint:
        """That checkpoint; or the newest here if it came from there by this very command, which was started again."""
        path = Path(how)
        own = self.checkpoints.newest() if self.checkpoints.came_from(how) else None
        if own:
            return own
        if not path.is_dir():
            raise ValueError(
                f"checkpoint.resume = {how!r} is no folder; it is auto, never, or a checkpoint such as "
                "runs/NAME/checkpoints/epoch-20"
            )
        found = checkpoint.load(path)
        last = self.checkpoints.epochs()[-1:]
        goes_on = (
            last == [found.epoch] and path.resolve().parent == self.checkpoints.folder.resolve()
        )
        return found if goes_on else replace(found, tracker="")

    def restore(self, learner: Learner) -> int:
        """Load what was found; what came after it is forgotten. Returns the epoch to begin with."""
        found, self.found = self.found, None
        if found is None:
            return 0
        if self.runtime.is_main:
            self.checkpoints.forget_after(found.epoch)
        learner.restore(found)
        self.runtime.say(f"going on from epoch {found.epoch} of {self.folder}")
        return found.epoch

    def save(self, learner: Learner, epoch: int, scores: dict[str, float], tracker: str) -> None:
        """Rank 0 copies what is held and begins to write it, once the checkpoint before is on the disk.

        Where that one could not be written, this one is waited for. Raises NoRoomError on all ranks when the disk has
        no room for it.
        """

        def begin() -> None:
            lost = self._lost()
            again = lost is not None
            if again:
                self.runtime.say(f"the checkpoint before epoch {epoch}'s was not written: {lost!r}")
            del lost  # its traceback holds that checkpoint in memory
            made, card = learner.snapshot(epoch, self.settings, scores, tracker), self._card()
            self.checkpoints.check_room(made)

            def write() -> None:
                with self.preemption.write():
                    self.checkpoints.save(
                        made, lambda out: self._export(learner, out, card, made.state["ema"])
                    )

            self._writing = self._writer.submit(write)
            if again:
                self._wait()

        self.runtime.on_main(begin)

    def settle(self) -> None:
        """Wait for the last checkpoint to be on the disk. Raises NoRoomError on all ranks when there was no room."""
        self.runtime.on_main(self._wait)

    def _wait(self) -> None:
        if lost := self._lost():
            raise lost

    def _lost(self) -> BaseException | None:
        """Wait for the checkpoint in work; why it was not written, None if it was."""
        error = self._writing.exception() if self._writing else None
        self._writing = None
        return error

    def close(self) -> None:
        """Wait for what is in work, on rank 0 alone, and say what was not written. No more can be saved."""
        if self._writing and not self._writing.done():
            self.runtime.say("waiting for the checkpoint in work to be on the disk")
        self._writer.shutdown()
        if lost := self._lost():
            self.runtime.say(f"the last checkpoint was not written: {lost!r}")

    def how_to_resume(self) -> str:
        """The last epoch that is safe, and the command that resumes from it."""
        safe = "no epoch was finished yet"
        if saved := self.checkpoints.epochs():
            safe = f"everything up to epoch {saved[-1]} is in {self.folder}"
        auto = "" if self.options.resume == "auto" else " with --config.checkpoint.resume=auto"
        return f"{safe}; the same command{auto} resumes from there."

    def add_scores(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Of an evaluation made up for after the checkpoint of that epoch was written, if that is in this folder."""

        def write() -> None:
            if epoch in self.checkpoints.epochs():
                self.checkpoints.add_scores(epoch, scores)

        self.runtime.on_main(write)

    def check_best(self, scores: Mapping[str, float]) -> None:
        """Raises RewardError when the first evaluation has no score of the name that is to mark the best."""
        if self.options.best and self.options.best not in scores:
            known = [name for name in scores if not name.endswith("_se")]
            raise RewardError(
                f"checkpoint.best = {self.options.best!r}: the evaluation has no such score, only {', '.join(known)}"
            )

    def finish(self, learner: Learner) -> Path:
        """Rank 0 writes the averaged policy into `adapter/` and the report, and says what was gained; its path."""
        self.settle()
        page = self.folder / "report.html"

        def write() -> None:
            with files.whole(self.folder / checkpoint.ADAPTER) as draft:
                self._export(learner, draft, self._card())
            report.write(self.folder, page)
            for row in report.gains(self.folder)[:1]:
                self.runtime.say(
                    f"held-out {row['name']}: {row['before']:.3f} -> {row['after']:.3f}  "
                    f"({row['change']:+.3f} ± {row['se']:.3f}, {row['n']} images)"
                )

        self.runtime.on_main(write)
        return page

    def _card(self) -> str:
        """What the policy is and what it has gained so far."""
        return model_card.write(self.settings, report.gains(self.folder))

    def _export(
        self, learner: Learner, folder: Path, card: str, ema: Mapping[str, Any] | None = None
    ) -> None:
        """The averaged policy with its card; ema: see `Learner.export`."""
        learner.export(folder, ema)
        (folder / "README.md").write_text(card)
