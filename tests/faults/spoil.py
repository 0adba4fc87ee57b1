"""What goes wrong on one rank: called there before the run."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

import tp_grpo.data.prompts
import tp_grpo.trainer
from tp_grpo.plan import Plan
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.train.update import Updater


def weights() -> None:
    """Every update leaves the last bit of one weight other than it should be."""
    step = Updater.step

    def spoiled(self: Updater, *arguments: Any, **options: Any) -> dict[str, float]:
        report = step(self, *arguments, **options)
        with torch.no_grad():
            self.learner.parameters[3].view(-1)[7].nextafter_(torch.tensor(torch.inf))
        return report

    Updater.step = spoiled  # type: ignore[method-assign]


def prompts() -> None:
    """Every epoch draws the first prompts, backwards."""
    tp_grpo.data.prompts.epoch_groups = lambda n, *, groups, **_: list(range(groups))[::-1]  # type: ignore[assignment]


def window() -> None:
    """Its SDE steps are one later."""
    plan = tp_grpo.trainer.make_plan

    def later(*arguments: Any, **options: Any) -> Plan:
        right = plan(*arguments, **options)
        window = range(right.window.start + 1, right.window.stop + 1)
        return replace(right, completion=replace(right.completion, window=window))

    tp_grpo.trainer.make_plan = later


def config() -> None:
    """It was started with another learning rate."""
    sys.argv.append("--config.train.learning_rate=0.5")


def waiting_for_writes() -> None:
    """No epoch begins before the last one's checkpoint is written, and its seconds known."""
    save = RunFolder.save

    def save_and_wait(self: RunFolder, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        self._wait()

    RunFolder.save = save_and_wait  # type: ignore[method-assign]
