"""A training run that evaluates at given epochs and notes the CPU seconds of each: see methods.py.

Its one argument is JSON, see `main`.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from tp_grpo.store import files
from tp_grpo.trainer import Trainer

CPU = "cpu.jsonl"  # in the run's folder: a line an epoch


class MarkedRun(Trainer):
    """A trainer that evaluates at `marks`, and writes what its epochs cost without that."""

    def __init__(self, config: ConfigDict, marks: Sequence[int], *, base: bool = True) -> None:
        """base: whether the untrained model, which is the same for all methods, is evaluated."""
        super().__init__(config)
        self.marks, self.cpu_seconds = frozenset(marks), 0.0
        if not base:
            has_evaluation = self.tracker.has_evaluation
            self.tracker.has_evaluation = lambda epoch: epoch == 0 or has_evaluation(epoch)  # type: ignore[method-assign]

    def _evaluation_due(self, epoch: int) -> bool:
        return epoch in self.marks

    def _epoch(self, epoch: int) -> float:
        begun = time.process_time()  # of all threads, the scorers' among them
        reward = super()._epoch(epoch)
        self.cpu_seconds = time.process_time() - begun
        values = {"epoch": epoch + 1, "cpu_seconds": self.cpu_seconds}
        files.append_line(self.folder / CPU, values)
        return reward


def config_of(algorithm: str, recipe: str, fields: Mapping[str, Any]) -> ConfigDict:
    """The recipe of config/ALGORITHM.py with these fields, such as {"train.beta": 0.0}."""
    config: ConfigDict = importlib.import_module(f"config.{algorithm}").get_config(recipe)
    config.update_from_flattened_dict(dict(fields))
    return config


def costs(
    methods: Mapping[str, tuple[str, Mapping[str, Any]]], recipe: str, out: str, rounds: int
) -> dict[str, float]:
    """CPU seconds of an epoch of each method: medians of `rounds` epochs, the methods in turn."""
    runs: dict[str, MarkedRun] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number, (name, (algorithm, fields)) in enumerate(methods.items()):
        place = {"run_name": f"cost-{number}", "output_dir": out, "epochs": rounds + 1}
        runs[name] = MarkedRun(config_of(algorithm, recipe, {**fields, **place}), ())
    for epoch in range(rounds + 1):
        for name, run in runs.items():
            run._epoch(epoch)
            if epoch:  # the first fills caches
                seconds[name].append(run.cpu_seconds)
        print(f"costs: round {epoch} of {rounds}", flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(line: str) -> None:
    """line: JSON, the arguments of `costs`, or a run's config and marks."""
    call = json.loads(line)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if "costs" in call:
        result = costs(call["costs"], call["recipe"], call["out"], call["rounds"])
        (Path(call["out"]) / "costs.json").write_text(json.dumps(result))
        return
    config = config_of(call["algorithm"], call["recipe"], call["fields"])
    config.epochs = max(call["marks"])
    MarkedRun(config, call["marks"], base=call["base"]).run()


if __name__ == "__main__":
    main(sys.argv[1])
