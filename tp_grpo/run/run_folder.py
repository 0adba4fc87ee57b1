"""A run's folder: its lock, checkpoints and exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tp_grpo import report
from tp_grpo.observe import model_card, tracking
from tp_grpo.ranks import agreement
from tp_grpo.ranks.preemption import Preemption
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardError
from tp_grpo.settings import CheckpointSettings
from tp_grpo.store import checkpoint, compare, files
from tp_grpo.store.checkpoint import Checkpoint, Checkpoints
from tp_grpo.train.learner import Learner


class RunFolder:
    """Locks a run's folder, finds the checkpoint to resume from, saves and exports.

    origin: the checkpoint to resume from, None for a new run; dropped once it is restored. Its
    `tracker` is empty when the run starts a new curve. branches: whether it is another run's.
    A checkpoint is copied into host memory and written during the next epoch, on a thread of rank
    0: `settle` before reading `checkpoints`.
    """

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        options: CheckpointSettings,
        settings: dict[str, Any],
        preemption: Preemption,
    ) -> None:
        """options: `config.checkpoint`; settings: the whole config; preemption: times the writing.

        Raises ValueError for a run that cannot or must not be resumed, or that is running already;
        DisagreementError when ranks have other configs or see other checkpoints.
        """
        self.runtime, self.folder, self.options = runtime, folder, options
        self.preemption = preemption
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None  # on rank 0
        kept = (options.keep_every, options.keep, options.best)
        self.checkpoints = Checkpoints(folder / "checkpoints", *kept)
        agreement.check(
            runtime,
            {f"config.{name} =": value for name, value in compare.flatten(settings).items()},
            "start every node with the same command, from the same version of this repository",
        )
        self.settings = _lasting(settings)
        self.branches = False
        self._lock: IO[str] | None = None
        self._look(self._lock_folder)
        self.origin = self._origin(options.resume)
        last = self.origin.epoch if self.origin else -1
        self._look(lambda: tracking.check(folder, last))
        agreement.check(
            runtime,
            {"as last epoch": self.origin.epoch if self.origin else "none"},
            f"every node must see the same output_dir: do all share the file system of {folder}?",
        )

    def _lock_folder(self) -> None:
        """Two runs in one folder would remove each other's checkpoints."""
        files.check_writable(self.folder, "output_dir")
        for name in ("checkpoints", "evaluations", "ladders"):  # of a run that resumes
            if (self.folder / name).exists():
                files.check_writable(self.folder / name, "output_dir")
        try:
            self._lock = files.hold(self.folder / ".lock")
        except ValueError as error:
            advice = "wait for that run, stop it, or give this one another run_name"
            raise ValueError(f"{error}: {advice}") from None

    def _look(self, check: Callable[[], None]) -> None:
        """Rank 0 checks the folder; what is wrong with it all ranks raise as a ValueError."""
        refusal = ""
        if self.runtime.is_main:
            try:
                check()
            except ValueError as error:
                refusal = str(error)
        if refusal := self.runtime.all_gather_object(refusal)[0]:
            raise ValueError(refusal)

    def _origin(self, how: str) -> Checkpoint | None:
        """how: auto, never, or a checkpoint's path."""
        if how == "never":
            if saved := self.checkpoints.epochs():
                raise ValueError(
                    f"checkpoint.resume = 'never', but {self.folder} holds a run at epoch "
                    f"{saved[-1]}; give another run_name, or move that folder away"
                )
            return None
        if how == "auto" or self.checkpoints.came_from(how):
            origin = self.checkpoints.newest()
        else:
            origin = self._load(Path(how))
            self.branches = not self._holds(Path(how))
        if origin:
            where = Path(how) if self.branches else self.folder
            compare.check_same_run(origin.config, self.settings, where, self.branches)
            checkpoint.warn_of_versions(origin)
        return origin

    def _load(self, path: Path) -> Checkpoint:
        """That checkpoint; without its tracker unless it is our newest: curves only grow."""
        if not path.is_dir():
            raise ValueError(
                f"checkpoint.resume = {str(path)!r} is no folder; it is auto, never, or a "
                "checkpoint such as runs/NAME/checkpoints/epoch-20"
            )
        named = checkpoint.load(path)
        newest = self._holds(path) and self.checkpoints.epochs()[-1:] == [named.epoch]
        return named if newest else replace(named, tracker="")

    def _holds(self, path: Path) -> bool:
        return path.resolve().parent == self.checkpoints.folder.resolve()

    def restore(self, learner: Learner) -> int:
        """Load the origin and remove later checkpoints; returns the number of epochs done."""
        origin, self.origin = self.origin, None
        if origin is None:
            return 0
        if self.runtime.is_main:
            self.checkpoints.forget_after(origin.epoch)
        learner.restore(origin)
        self.runtime.say(f"resuming from epoch {origin.epoch} of {self.folder}")
        return origin.epoch

    def save(self, learner: Learner, epoch: int, scores: dict[str, float], tracker: str) -> None:
        """Rank 0 copies the state and starts to write it, once the previous checkpoint is written.

        If that one failed, waits for this one. Raises NoRoomError on all ranks if the disk is full.
        """

        def begin() -> None:
            error = self._wait()
            failed = error is not None
            if failed:
                self.runtime.say(
                    f"the checkpoint before epoch {epoch}'s was not written: {error!r}"
                )
            del error  # its traceback holds that checkpoint in memory
            snapshot, card = learner.snapshot(epoch, self.settings, scores, tracker), self._card()
            self.checkpoints.check_room(snapshot)

            def write() -> None:
                with self.preemption.timed("write"):
                    ema = snapshot.state["ema"]
                    self.checkpoints.save(
                        snapshot, lambda out: self._export(learner, out, card, ema)
                    )

            self._writing = self._writer.submit(write)
            if failed:
                self._check_written()

        self.runtime.on_main(begin)

    def settle(self) -> None:
        """Wait for the last checkpoint. Raises NoRoomError on all ranks if it failed."""
        self.runtime.on_main(self._check_written)

    def _check_written(self) -> None:
        if error := self._wait():
            raise error

    def _wait(self) -> BaseException | None:
        """Wait until the last checkpoint is written; returns its error if it failed."""
        error = self._writing.exception() if self._writing else None
        self._writing = None
        return error

    def close(self) -> None:
        """Wait for the last checkpoint, on rank 0 alone; say what failed. No more can be saved."""
        if self._writing and not self._writing.done():
            self.runtime.say("waiting until the last checkpoint is written")
        self._writer.shutdown()
        if error := self._wait():
            self.runtime.say(f"the last checkpoint was not written: {error!r}")

    def how_to_resume(self) -> str:
        """The last epoch that is safe, and the command that resumes from it."""
        safe = "no epoch was finished yet"
        if saved := self.checkpoints.epochs():
            safe = f"everything up to epoch {saved[-1]} is in {self.folder}"
        auto = "" if self.options.resume == "auto" else " with --config.checkpoint.resume=auto"
        return f"{safe}; the same command{auto} resumes from there."

    def add_scores(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Add scores from an evaluation that ran after its checkpoint was saved, if it is here."""

        def write() -> None:
            if epoch in self.checkpoints.epochs():
                self.checkpoints.add_scores(epoch, scores)

        self.runtime.on_main(write)

    def check_best(self, scores: Mapping[str, float]) -> None:
        """Raises RewardError if the first evaluation lacks the score that marks the best."""
        if self.options.best and self.options.best not in scores:
            known = ", ".join(name for name in scores if not name.endswith("_se"))
            raise RewardError(
                f"checkpoint.best = {self.options.best!r}: the evaluation has no such score, only "
                f"{known}"
            )

    def finish(self, learner: Learner) -> Path:
        """Rank 0 exports the averaged policy to `adapter/`, writes the report and says the gain.

        Returns the report's path.
        """
        self.settle()
        page = self.folder / "report.html"

        def write() -> None:
            with files.whole(self.folder / checkpoint.ADAPTER) as draft:
                self._export(learner, draft, self._card())
            try:
                report.write(self.folder, page)
                gains = report.gains(self.folder)[:1]
            except ValueError as error:  # a file was damaged meanwhile; the policy is safe
                self.runtime.say(f"no report was written: {error}")
                gains = []
            for row in gains:
                self.runtime.say(
                    f"held-out {row['name']}: {row['before']:.3f} -> {row['after']:.3f}  "
                    f"({row['change']:+.3f} ± {row['se']:.3f}, {row['n']} images)"
                )

        self.runtime.on_main(write)
        return page

    def _card(self) -> str:
        """What the policy is and what it has gained so far."""
        try:
            gains = report.gains(self.folder)
        except ValueError as error:  # no checkpoint is lost for the sake of its card
            self.runtime.say(f"the policy's card has no scores: {error}")
            gains = []
        return model_card.write(self.settings, gains)

    def _export(
        self, learner: Learner, folder: Path, card: str, ema: Mapping[str, Any] | None = None
    ) -> None:
        """The averaged policy with its card; ema: see `Learner.export`."""
        learner.export(folder, ema)
        (folder / "README.md").write_text(card, "utf-8")


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as checkpoints keep them: with the path in `checkpoint.resume` absolute.

    The same command from another working directory must know its own run again.
    """
    kept = settings["checkpoint"]
    if kept["resume"] in ("auto", "never"):
        return settings
    return settings | {"checkpoint": kept | {"resume": str(Path(kept["resume"]).absolute())}}
