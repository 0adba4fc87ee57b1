"""Held-out score against updates, evaluations and seconds: as credit.py compares it."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from safetensors import safe_open

matplotlib.use("agg")
import matplotlib.pyplot as plt

from tp_grpo.method.stats import mean_and_error
from tp_grpo.observe import tracking

AXES = {
    "updates": "updates",
    "evaluations": "model evaluations while sampling",
    "seconds": "seconds of training",
}
COLORS = ("#000000", "#e69f00", "#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7")
LINES = ("-", "--")  # when the colours are used up


@dataclass(frozen=True)
class Curve:
    """A method at the epochs that all its seeds evaluated, the base model first.

    updates, evaluations, seconds (E,): from the start, evaluations apart; scores (seeds, E);
    gains (seeds, E) of (gain over the base, its standard error over prompts).
    """

    epochs: list[int]
    updates: list[float]
    evaluations: list[float]
    seconds: list[float]
    scores: list[list[float]]
    gains: list[list[tuple[float, float]]]

    @property
    def mean(self) -> list[float]:
        return [statistics.mean(column) for column in zip(*self.scores, strict=True)]

    @property
    def error(self) -> list[float]:
        """Standard error over seeds; 0 for a single one."""
        if len(self.scores) < 2:
            return [0.0] * len(self.epochs)
        return [
            statistics.stdev(column) / len(column) ** 0.5
            for column in zip(*self.scores, strict=True)
        ]

    def at(self, second: float) -> tuple[float, float]:
        """Mean score after N seconds, linear between evaluations, and its error over seeds."""
        values = [float(np.interp(second, self.seconds, scores)) for scores in self.scores]
        return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(
            values
        ) > 1 else 0.0

    def seconds_to(self, score: float) -> float | None:
        """When the mean first reaches that score, linear between evaluations; None if never."""
        mean = self.mean
        for i, (here, there) in enumerate(itertools.pairwise(mean)):
            if here < score <= there:
                share = (score - here) / (there - here)
                return self.seconds[i] + share * (self.seconds[i + 1] - self.seconds[i])
        return 0.0 if mean[0] >= score else None


def read(folders: Sequence[Path], score: str) -> Curve:
    """The runs of a method's seeds. An epoch's seconds: the median of the least disturbed run."""
    training = [_training(folder) for folder in folders]
    second = min(statistics.median(line["seconds"] for line in lines) for lines in training)
    paths = [_evaluations(folder) for folder in folders]
    epochs = sorted(set.intersection(*map(set, paths)))
    last = {0: {"updates": 0.0, "nfe": 0.0}} | {line["epoch"]: line for line in training[0]}
    scores, gains = [], []
    for by_epoch in paths:
        seeds = [_scores(by_epoch[epoch], score) for epoch in epochs]
        scores.append([mean_and_error(values, prompts)[0] for values, prompts in seeds])
        gains.append([mean_and_error(values - seeds[0][0], prompts) for values, prompts in seeds])
    updates, evaluations = ([last[epoch][name] for epoch in epochs] for name in ("updates", "nfe"))
    return Curve(epochs, updates, evaluations, [second * epoch for epoch in epochs], scores, gains)


def compare(curves: dict[str, Curve], baseline: str) -> str:
    """A row a method: after equal updates, equal seconds, and the time to the baseline's scores."""
    updates = min(curve.updates[-1] for curve in curves.values())
    seconds = min(curve.seconds[-1] for curve in curves.values())
    head = ["method", f"after {updates:.0f} updates", f"after {seconds:.0f} s"]
    targets: list[float] = []
    if baseline in curves:
        base = curves[baseline]
        targets = [float(np.interp(updates, base.updates, base.mean)), base.mean[-1]]
        after = updates, base.updates[-1]
        head += [
            f"seconds to {baseline}'s {t:.3f} (its {n:.0f} updates)"
            for t, n in zip(targets, after, strict=True)
        ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, curve in curves.items():
        equal_updates = float(np.interp(updates, curve.updates, curve.seconds))
        reached = [curve.at(second) for second in (equal_updates, seconds)]
        cells = [method, *(f"{mean:.3f} ± {error:.3f}" for mean, error in reached)]
        times = [curve.seconds_to(target) for target in targets]
        cells += ["not reached" if time is None else f"{time:.0f}" for time in times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(curves: dict[str, Curve]) -> str:
    """A row for each method and evaluated epoch, with the standard error over seeds."""
    head = [
        "method",
        "updates",
        "sampling evaluations",
        "seconds",
        "held-out score",
        "gain over base ± s.e., by seed",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, curve in curves.items():
        for i in range(1, len(curve.epochs)):
            gains = ", ".join(f"{gain[i][0]:+.3f} ± {gain[i][1]:.3f}" for gain in curve.gains)
            cells = [method, f"{curve.updates[i]:.0f}", f"{curve.evaluations[i] / 1000:.0f} k"]
            cells += [
                f"{curve.seconds[i]:.0f}",
                f"{curve.mean[i]:.3f} ± {curve.error[i]:.3f}",
                gains,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curves: dict[str, Curve], score: str, out: Path) -> None:
    """The mean over seeds and a band of its standard error, against each of AXES."""
    figure, panels = plt.subplots(
        1, len(AXES), figsize=(5 * len(AXES), 4.2), sharey=True, layout="constrained"
    )
    for axes, (name, label) in zip(panels, AXES.items(), strict=True):
        looks = itertools.product(LINES, COLORS)
        for (method, curve), (line, color) in zip(curves.items(), looks, strict=False):
            x, mean, error = getattr(curve, name), np.array(curve.mean), np.array(curve.error)
            axes.plot(x, mean, line, color=color, marker="o", markersize=3, label=method)
            axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"held-out {score}")
    panels[0].legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _training(folder: Path) -> list[dict[str, float]]:
    lines = tracking.records(folder / "metrics.jsonl")
    return [line for line in lines if line["kind"] == "train"]


def _evaluations(folder: Path) -> dict[int, Path]:
    return {tracking.epoch_of(path): path for path in tracking.by_epoch(folder / "evaluations")}


def _scores(path: Path, score: str) -> tuple[torch.Tensor, list[str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(score), json.loads(file.metadata()["prompts"])
