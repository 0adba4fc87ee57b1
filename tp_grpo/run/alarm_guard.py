"""The alarms of a run under way: asked after every epoch, and obeyed as `tracking.alarms` says (see `alarms`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp_grpo import report
from tp_grpo.observe import alarms
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.store import files
from tp_grpo.store.checkpoint import ADAPTER


class AlarmGuard:
    """Looks at the metrics.jsonl of the run's folder, which rank 0 alone writes."""

    def __init__(self, runtime: Runtime, folder: Path, run_folder: RunFolder, config: Any) -> None:
        self.runtime, self.folder, self.run_folder, self.config = (
            runtime,
            folder,
            run_folder,
            config,
        )

    def check(self) -> None:
        """Called by all ranks after an epoch's checkpoint.

        Raises Alarmed on all of them where the run is to end, with its report written.
        """
        how = self.config.tracking.alarms
        history = files.read_lines(self.folder / "metrics.jsonl") if self.runtime.is_main else []
        if how in ("stop", "rollback"):
            raised = self.runtime.all_gather_object(alarms.check(history, self.config))[0]
            if raised:
                done = self._settle()
                done += [self._roll_back(history)] if how == "rollback" else []
                raise alarms.Alarmed(raised, "\n".join([*done, self._report()]))
            return
        for alarm in alarms.risen(history, self.config):
            self.runtime.say(str(alarm))

    def _settle(self) -> list[str]:
        """Nothing, or why the last checkpoint is not there: what ends the run is the alarm, not a full disk."""
        try:
            self.run_folder.settle()
        except OSError as error:
            return [f"The last checkpoint was not written: {error}"]
        return []

    def _report(self) -> str:
        """Where the run's page is, or why there is none."""
        page, said = self.folder / "report.html", ""
        if self.runtime.is_main:
            try:
                report.write(self.folder, page)
                said = f"What the run did: {page}"
            except (OSError, ValueError) as error:
                said = f"There is no report of the run: {error}"
        return self.runtime.all_gather_object(said)[0]

    def _roll_back(self, history: Sequence[Mapping[str, Any]]) -> str:
        """Export the best checkpoint's policy; what was done, and the command to train on from there."""
        totals = self.runtime.all_gather_object(alarms.honest(history, self.config))[0]
        checkpoints = self.run_folder.checkpoints
        best = self.runtime.all_gather_object(alarms.best_epoch(totals, checkpoints.epochs()))[0]
        if best is None:
            return f"There is nothing to go back to. {self._removed(totals, best)}"
        source = checkpoints.folder / f"epoch-{best}"

        def write() -> None:
            with files.whole(self.folder / ADAPTER) as draft:
                shutil.copytree(source / ADAPTER, draft)

        try:
            self.runtime.on_main(write)
        except OSError as error:
            return f"{source / ADAPTER} holds the policy of epoch {best}, the best evaluated one; not copied: {error}"
        return (
            f"{self.folder / ADAPTER} holds the policy of epoch {best}, the best evaluated one. To train on from it "
            f"with other settings: the same command with --config.checkpoint.resume={source} --config.run_name=NAME "
            f"and what is to change. {self._removed(totals, best)}"
        ).rstrip()

    def _removed(self, totals: Mapping[int, float], best: int | None) -> str:
        """What can be done where a better epoch than `best` has no checkpoint; nothing where there is none such."""
        better = max(totals, key=lambda epoch: totals[epoch], default=0)
        if best is not None and totals[better] <= totals[best]:
            return ""
        every = self.config.eval.every
        if better == 0:
            return (
                f"No evaluation without an alarm was better than the base model's. They are {every} epochs apart: a "
                "lower --config.eval.every may find a better policy in between."
            )
        return (
            f"The checkpoint of epoch {better}, evaluated as better without an alarm (total {totals[better]:.4g}), has "
            "been removed, for checkpoint.keep and checkpoint.keep_every keep only some. The same command with "
            f"--config.run_name=NAME --config.epochs={better} makes it again, with the same noise; "
            f"--config.checkpoint.keep_every={every} keeps one of every evaluation."
        )
