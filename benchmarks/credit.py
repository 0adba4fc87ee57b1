"""Compare the credit methods on a recipe: python benchmarks/credit.py [--recipe shapes_tiny] [--seeds 3]

Trains every method with every seed, one after another (a run that is finished is not repeated), and prints the
held-out score against updates, model evaluations and seconds as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "Flow-GRPO": ("flow_grpo", "terminal"),
    "incremental": ("tp_grpo", "incremental"),
    "TP-GRPO": ("tp_grpo", "turning_point"),
}


def train(out: Path, method: str, recipe: str, seed: int, extra: list[str]) -> Path:
    """One run by scripts/train.py; returns its folder."""
    file, credit = METHODS[method]
    name = f"{credit}-{seed}"
    command = [sys.executable, "scripts/train.py", f"--config=config/{file}.py:{recipe}", f"--config.run_name={name}"]
    command += [f"--config.credit.name={credit}", f"--config.seed={seed}", f"--config.output_dir={out}", *extra]
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
    return out / name


def read(folder: Path, score: str) -> dict[int, dict[str, float]]:
    """By evaluated epoch: score, gain over the base with its paired s.e., updates, model evaluations, seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    rows = {}
    base = load_file(folder / "evaluations" / "epoch-0.safetensors")[score].double()
    for path in (folder / "evaluations").glob("epoch-*.safetensors"):
        epoch = int(path.stem.removeprefix("epoch-"))
        now = load_file(path)[score].double()
        done = training[:epoch]
        rows[epoch] = {
            "score": now.mean().item(),
            "gain": (now - base).mean().item(),
            "se": ((now - base).std(correction=0) / len(now) ** 0.5).item(),
            "updates": done[-1]["updates"] if done else 0,
            "nfe": done[-1]["nfe"] if done else 0,
            "seconds": sum(line["seconds"] for line in done),
        }
    return dict(sorted(rows.items()))


def table(runs: dict[str, list[dict[int, dict[str, float]]]]) -> str:
    """A row for each method and evaluated epoch: mean over seeds, with the standard error over seeds."""
    lines = ["| method | updates | model evaluations | seconds | held-out score | gain over base (each seed) |"]
    lines.append("|---|---|---|---|---|---|")
    for method, seeds in runs.items():
        for epoch in seeds[0]:
            at = [seed[epoch] for seed in seeds]
            score = [row["score"] for row in at]
            spread = f" ± {statistics.stdev(score) / math.sqrt(len(score)):.3f}" if len(score) > 1 else ""
            gains = ", ".join(f"{row['gain']:+.3f}" for row in at)
            cells = [method, f"{at[0]['updates']:.0f}", f"{at[0]['nfe'] / 1000:.0f} k"]
            cells += [
                f"{statistics.mean(row['seconds'] for row in at):.0f}",
                f"{statistics.mean(score):.3f}{spread}",
                gains,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/credit"))
    parser.add_argument("--recipe", default="shapes_tiny")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 .. N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--score", default="shapes/exact")
    arguments, extra = parser.parse_known_args()
    out = arguments.out.resolve()
    runs: dict[str, list[dict[int, dict[str, float]]]] = {}
    for seed in range(1, arguments.seeds + 1):  # seeds outermost: a drift of the machine meets all methods alike
        for method in arguments.methods:
            folder = train(out, method, arguments.recipe, seed, extra)
            runs.setdefault(method, []).append(read(folder, arguments.score))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {date.today()}"
    print(f"\n{arguments.recipe}, {arguments.score}, {arguments.seeds} seeds, {machine}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
