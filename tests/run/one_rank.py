"""A runtime of one process, and a run's folder without a Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from tp_grpo.ranks.preemption import Preemption
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.store.checkpoint import Checkpoint


class OneRank:
    """Notes the lines that it prints."""

    is_main, rank, world_size = True, 0, 1

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def all_gather_object(self, item: Any) -> list[Any]:
        return [item]

    def all_max(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def on_main(self, work: Callable[[], None]) -> None:
        work()


class Learner:
    """Learns one tensor: the number of the epoch."""

    def snapshot(self, epoch: int, settings: dict, scores: dict, tracker: str) -> Checkpoint:
        weights = {"a": torch.full((3,), float(epoch))}
        return Checkpoint(epoch, weights, {"ema": {"epoch": epoch}}, settings, scores, tracker)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.restored = checkpoint.epoch

    def export(self, folder: Path, ema: Mapping[str, Any] | None = None) -> None:
        folder.mkdir()
        (folder / "weights").write_text(str(ema))


def open_folder(config: ConfigDict) -> RunFolder:
    """The folder of a run with that config; its `runtime` is a OneRank."""
    runtime: Any = OneRank()
    settings = json.loads(config.to_json_best_effort())
    folder = Path(config.output_dir) / config.run_name
    return RunFolder(runtime, folder, config.checkpoint, settings, Preemption(runtime, 20))


def save(folder: RunFolder, *epochs: int, tracker: str = "") -> None:
    learner: Any = Learner()
    for epoch in epochs:
        folder.save(learner, epoch, {}, tracker)
    folder.settle()
