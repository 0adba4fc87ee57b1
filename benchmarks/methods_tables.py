"""What methods.py measured: lines of JSON, from them the tables and the figure."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from curves import Curve, draw
from marked_run import CPU

from tp_grpo.images import coarse, diversity
from tp_grpo.observe import tracking
from tp_grpo.store import files

BASELINE = "Flow-GRPO"
RATE_SEED = 5  # on which learning rates are chosen
SCORE = "exact"
SHOWN = ("graded", "count", "color", "shape", "position")  # parts of the score, in the table
WORK = ("evaluations_rollout", "images_decode", "evaluations_update")


@dataclass(frozen=True)
class Line:
    """kind `cost`: the CPU seconds of an epoch. kind `mark`: a run's scores at a mark.

    mark: nominal CPU seconds, 0 of the untrained model; cpu_seconds: as measured in that run. work:
    evaluations while sampling, images decoded and rows of the updates' forward passes, so far.
    """

    kind: str
    method: str
    seed: int = 0
    rate: float = 0.0
    mark: int = 0
    epoch: int = 0
    cost: float = 0.0
    cpu_seconds: float = 0.0
    updates: int = 0
    work: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    diversity: float = 0.0
    machine: str = ""


def append(path: Path, line: Line) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.append_line(path, asdict(line))


def read(path: Path, kind: str = "mark") -> list[Line]:
    """The lines of that kind, none where nothing was measured."""
    if not path.exists():
        return []
    lines = [Line(**values) for values in files.read_lines(path)]
    return [line for line in lines if line.kind == kind]


def lines_of(folder: Path, job: dict[str, Any], epochs: dict[int, int], base: bool) -> list[Line]:
    """A finished run's lines; epochs: by mark; base: whether it evaluated the untrained model."""
    metrics = tracking.records(folder / "metrics.jsonl")
    training = {line["epoch"]: line for line in metrics if line["kind"] == "train"}
    evaluations = {line["epoch"]: line for line in metrics if line["kind"] == "eval"}
    cpu = {line["epoch"]: line["cpu_seconds"] for line in files.read_lines(folder / CPU)}
    lines = []
    for mark, epoch in (({0: 0} if base else {}) | epochs).items():
        before = [training[number] for number in range(1, epoch + 1)]
        work = {name: round(sum(line.get(name, 0) for line in before)) for name in WORK}
        scores = {
            name.removeprefix("shapes/"): value
            for name, value in evaluations[epoch].items()
            if name.startswith("shapes/") and not name.endswith("_se")
        }
        lines.append(
            Line(
                "mark",
                job["method"],
                job["seed"],
                job["rate"],
                mark,
                epoch,
                cpu_seconds=sum(cpu[number] for number in range(1, epoch + 1)),
                updates=round(before[-1]["updates"]) if before else 0,
                work=work,
                scores=scores,
                diversity=_diversity(folder / "evaluations" / f"epoch-{epoch}.safetensors"),
            )
        )
    return lines


def best_rates(lines: Sequence[Line], seed: int, mark: int) -> dict[str, float]:
    """By method the learning rate with the best score at that mark on that seed."""
    tried = [line for line in lines if line.seed == seed and line.mark == mark]
    tried.sort(key=lambda line: line.scores[SCORE])
    return {line.method: line.rate for line in tried}


def tables(lines: Sequence[Line], figure: Path) -> str:
    """Markdown: at equal seconds, what they bought, the learning rates; draws the figure."""
    final = _of_one_rate([line for line in lines if line.seed != RATE_SEED])
    curves = {name: _curve(final, name) for name in dict.fromkeys(line.method for line in final)}
    drawn = {name: curve for name, curve in curves.items() if curve}
    parts = [_rates([line for line in lines if line.seed == RATE_SEED])]
    if drawn:
        draw(drawn, SCORE, figure)
        parts = [_equal_seconds(final, drawn), _bought(final), *parts]
    return "\n\n".join(parts)


def _of_one_rate(lines: Sequence[Line]) -> list[Line]:
    """The untrained models', and of each method those with the learning rate that has most."""
    counts = Counter((line.method, line.rate) for line in lines if line.mark)
    chosen = {method: rate for (method, rate), _ in reversed(counts.most_common())}
    return [line for line in lines if not line.mark or line.rate == chosen[line.method]]


def _curve(lines: Sequence[Line], method: str) -> Curve | None:
    """The method's seeds that have all marks, from the untrained model on; None without any."""
    base = {line.seed: line for line in lines if line.mark == 0}
    seeds: dict[int, dict[int, Line]] = {}
    for line in lines:
        if line.method == method and line.mark and line.seed in base:
            seeds.setdefault(line.seed, {0: base[line.seed]})[line.mark] = line
    most = max(map(len, seeds.values()), default=0)
    whole = [dict(sorted(marks.items())) for marks in seeds.values() if len(marks) == most]
    if not whole:
        return None
    first = list(whole[0].values())
    scores = [[line.scores[SCORE] for line in marks.values()] for marks in whole]
    return Curve(
        epochs=[line.epoch for line in first],
        updates=[float(line.updates) for line in first],
        evaluations=[float(line.work["evaluations_rollout"]) for line in first],
        seconds=[float(mark) for mark in whole[0]],
        scores=scores,
        gains=[[(score - seed[0], math.nan) for score in seed] for seed in scores],
    )


def _equal_seconds(lines: Sequence[Line], curves: dict[str, Curve]) -> str:
    """A row a method: score at each mark, s.e. over seeds, and when it reached the baseline's."""
    baseline = curves.get(BASELINE)
    marks = sorted({int(mark) for curve in curves.values() for mark in curve.seconds[1:]})
    reached = [int(mark) for mark in baseline.seconds] if baseline else []
    targets = [mark for mark in (280, 560) if mark in reached]
    head = ["method", "seeds", *(f"{mark} s" for mark in marks), "gain by seed, last mark"]
    head += [f"s to {BASELINE}'s {mark} s" for mark in targets]
    rows = []
    for name, curve in curves.items():
        scores = {
            int(mark): f"{mean:.3f}" + (f" ± {error:.3f}" if len(curve.scores) > 1 else "")
            for mark, mean, error in zip(curve.seconds, curve.mean, curve.error, strict=True)
        }
        shown = [scores.get(mark, "") for mark in marks]  # some runs ended earlier
        gains = ", ".join(f"{gain[-1][0]:+.3f}" for gain in curve.gains)
        times = []
        for mark in targets:
            assert baseline is not None
            time = curve.seconds_to(baseline.mean[reached.index(mark)])
            times.append("not reached" if time is None else f"{time:.0f}")
        rows.append([name, str(len(curve.scores)), *shown, gains, *times])
    base = statistics.mean(line.scores[SCORE] for line in lines if line.mark == 0)
    return f"Held-out `{SCORE}`, untrained {base:.3f}:\n\n{_markdown(head, rows)}"


def _bought(lines: Sequence[Line]) -> str:
    """A row a method: its work until the last mark, then the parts of the score and diversity."""
    last = max(line.mark for line in lines)
    head = ["method", "s an epoch", "updates", "sampling evaluations", "images", "update rows"]
    head += [*SHOWN, "diversity"]
    rows = []
    names = dict.fromkeys(line.method for line in lines if line.mark)
    for name in ["untrained", *names]:
        mine = [
            line
            for line in lines
            if (
                line.mark == 0 if name == "untrained" else line.method == name and line.mark == last
            )
        ]
        if not mine:
            continue
        first, work = mine[0], [f"{mine[0].work[key] / 1000:.0f} k" for key in WORK]
        cost = f"{first.cpu_seconds / first.epoch:.2f}" if first.epoch else ""
        parts = [statistics.mean(line.scores[part] for line in mine) for part in SHOWN]
        parts.append(statistics.mean(line.diversity for line in mine))
        rows.append([name, cost, f"{first.updates}", *work, *(f"{part:.3f}" for part in parts)])
    return f"What {last} s bought, and the parts of the score:\n\n{_markdown(head, rows)}"


def _rates(lines: Sequence[Line]) -> str:
    """A row a method: its score on RATE_SEED at each learning rate."""
    rates = sorted({line.rate for line in lines if line.mark})
    scores = {(line.method, line.rate): line.scores[SCORE] for line in lines if line.mark}
    rows = []
    for name in dict.fromkeys(line.method for line in lines):
        values = [scores.get((name, rate), math.nan) for rate in rates]
        best = max((value for value in values if not math.isnan(value)), default=math.nan)
        shown = ["" if math.isnan(v) else f"{v:.3f}" for v in values]
        rows.append(
            [name, *(f"**{x}**" if v == best else x for v, x in zip(values, shown, strict=True))]
        )
    return (
        f"Learning rates, on seed {RATE_SEED}:\n\n{_markdown(['method', *map(str, rates)], rows)}"
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _diversity(path: Path) -> float:
    """The RMS distance of two images of a prompt, see `tp_grpo.images.diversity`."""
    with safe_open(path, framework="pt") as file:
        images, prompts = file.get_tensor("images"), json.loads(file.metadata()["prompts"])
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([number[prompt] for prompt in prompts[: len(images)]])
    return diversity(coarse(images.numpy()), group)
