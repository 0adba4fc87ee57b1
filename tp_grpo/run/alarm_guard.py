"""Checks a run's alarms after every epoch and does what `tracking.alarms` says; see `alarms`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tp_grpo import report
from tp_grpo.observe import alarms
from tp_grpo.observe.tracking import records
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.settings import Settings
from tp_grpo.store import files
from tp_grpo.store.checkpoint import ADAPTER


class AlarmGuard:
    """Reads the metrics.jsonl of the run's folder, on rank 0."""

    def __init__(
        self, runtime: Runtime, folder: Path, run_folder: RunFolder, config: Settings
    ) -> None:
        self.runtime, self.folder, self.config = runtime, folder, config
        self.run_folder = run_folder

    def check(self) -> None:
        """Called by all ranks after an epoch's checkpoint.

        Raises Alarmed on all of them if an alarm ends the run, once its report is written.
        """
        how, main = self.config.tracking.alarms, self.runtime.is_main
        history = records(self.folder / "metrics.jsonl") if main else []
        if how not in ("stop", "rollback"):
            for alarm in alarms.risen(history, self.config):
                self.runtime.say(str(alarm))
            return
        raised = self.runtime.all_gather_object(alarms.check(history, self.config))[0]
        if raised:
            done = [self._settle()]
            if how == "rollback":
                done.append(self._roll_back(alarms.honest(history, self.config)))
            done.append(self._report())
            raise alarms.Alarmed(raised, "\n".join(filter(None, done)))

    def _settle(self) -> str:
        """Why the last checkpoint is missing, if it is: the alarm ends the run, not a full disk."""
        try:
            self.run_folder.settle()
        except OSError as error:
            return f"The last checkpoint was not written: {error}"
        return ""

    def _report(self) -> str:
        """Where the run's page is, or why it has none."""
        page, words = self.folder / "report.html", ""
        if self.runtime.is_main:
            try:
                report.write(self.folder, page)
                words = f"What the run did: {page}"
            except (OSError, ValueError) as error:
                words = f"No report was written: {error}"
        return self.runtime.all_gather_object(words)[0]

    def _roll_back(self, totals: Mapping[int, float]) -> str:
        """Export the best checkpoint's policy; returns what was done and how to train on from it.

        totals: of `alarms.honest`, as rank 0 has them.
        """
        totals = self.runtime.all_gather_object(totals)[0]
        checkpoints = self.run_folder.checkpoints
        best = self.runtime.all_gather_object(alarms.best_epoch(totals, checkpoints.epochs()))[0]
        if best is None:
            return f"No checkpoint to return to. {self._better(totals, best)}"
        source, adapter = checkpoints.path(best), self.folder / ADAPTER
        policy = f"holds the policy of epoch {best}, the best evaluated one"

        def write() -> None:
            with files.whole(adapter) as draft:
                shutil.copytree(source / ADAPTER, draft)

        try:
            self.runtime.on_main(write)
        except OSError as error:
            return f"{source / ADAPTER} {policy}; not copied: {error}"
        return (
            f"{adapter} {policy}. To train on from it with other settings: the same command with "
            f"--config.checkpoint.resume={source} --config.run_name=NAME and your changes. "
            f"{self._better(totals, best)}"
        ).rstrip()

    def _better(self, totals: Mapping[int, float], best: int | None) -> str:
        """What to do next; empty unless a better epoch's checkpoint was deleted."""
        better = max(totals, key=lambda epoch: totals[epoch], default=0)
        if best is not None and totals[better] <= totals[best]:
            return ""
        every = self.config.eval.every
        if better == 0:
            return (
                "No evaluation without an alarm was better than the base model's. They are "
                f"{every} epochs apart: a lower --config.eval.every may find a better policy "
                "in between."
            )
        return (
            f"The checkpoint of epoch {better}, evaluated as better without an alarm (total "
            f"{totals[better]:.4g}), was deleted: checkpoint.keep and checkpoint.keep_every keep "
            "only some. The same command with --config.run_name=NAME "
            f"--config.epochs={better} makes it again, with the same noise; "
            f"--config.checkpoint.keep_every={every} keeps one of every evaluation."
        )
