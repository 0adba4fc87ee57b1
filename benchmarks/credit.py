"""Compare the credit methods on a recipe: python benchmarks/credit.py [--recipe shapes_tiny] [--seeds 3]

Trains every method with every seed (a run that is finished is not repeated, one that was stopped goes on), and prints
the held-out score against updates, model evaluations and seconds as Markdown.
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
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tp_grpo.rewards import mean_and_error

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "Flow-GRPO": ("flow_grpo", "terminal"),
    "incremental": ("tp_grpo", "incremental"),
    "TP-GRPO": ("tp_grpo", "turning_point"),
}


def train(out: Path, method: str, recipe: str, seed: int, threads: int, extra: list[str]) -> Path:
    """One run by scripts/train.py, its words in NAME.log; returns its folder."""
    file, credit = METHODS[method]
    name = f"{credit}-{seed}"
    command = [sys.executable, "scripts/train.py", f"--config=config/{file}.py:{recipe}", f"--config.run_name={name}"]
    command += [f"--config.credit.name={credit}", f"--config.seed={seed}", f"--config.output_dir={out}", *extra]
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    print(f"done: {out / name}", flush=True)
    return out / name


def read(folder: Path, score: str) -> dict[int, dict[str, float]]:
    """By evaluated epoch: score, gain over the base with its paired s.e., updates and sampling evaluations."""
    rows = {}
    training = _training(folder)
    base, prompts = _scores(folder / "evaluations" / "epoch-0.safetensors", score)
    for path in (folder / "evaluations").glob("epoch-*.safetensors"):
        epoch = int(path.stem.removeprefix("epoch-"))
        now, _ = _scores(path, score)
        gain, error = mean_and_error(now - base, prompts)
        last = training[epoch - 1] if epoch else {"updates": 0, "nfe": 0}
        rows[epoch] = {"score": mean_and_error(now, prompts)[0], "gain": gain, "se": error}
        rows[epoch] |= {"updates": last["updates"], "nfe": last["nfe"]}
    return dict(sorted(rows.items()))


def epoch_seconds(folders: list[Path]) -> float:
    """The median epoch of all seeds: what else the machine does for a while hardly moves it."""
    return statistics.median(line["seconds"] for folder in folders for line in _training(folder))


def _training(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def _scores(path: Path, score: str) -> tuple[torch.Tensor, list[str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(score), json.loads(file.metadata()["prompts"])


def table(folders: dict[str, list[Path]], name: str) -> str:
    """A row for each method and evaluated epoch: mean over seeds, with the standard error over seeds."""
    lines = ["| method | updates | sampling evaluations | seconds | held-out score | gain over base ± s.e., by seed |"]
    lines.append("|---|---|---|---|---|---|")
    for method, own in folders.items():
        seeds, seconds = [read(folder, name) for folder in own], epoch_seconds(own)
        for epoch in list(seeds[0])[1:]:
            at = [seed[epoch] for seed in seeds]
            score = [row["score"] for row in at]
            spread = f" ± {statistics.stdev(score) / math.sqrt(len(score)):.3f}" if len(score) > 1 else ""
            gains = ", ".join(f"{row['gain']:+.3f} ± {row['se']:.3f}" for row in at)
            cells = [method, f"{at[0]['updates']:.0f}", f"{at[0]['nfe'] / 1000:.0f} k"]
            cells += [f"{seconds * epoch:.0f}", f"{statistics.mean(score):.3f}{spread}", gains]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/credit"))
    parser.add_argument("--recipe", default="shapes_tiny")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 .. N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--score", default="shapes/exact")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, the cores divided among them")
    arguments, extra = parser.parse_known_args()
    out, cores = arguments.out.resolve(), os.cpu_count() or 1
    threads = max(1, cores // arguments.jobs)
    # Seeds outermost: a drift of the machine meets all methods alike.
    todo = [(method, seed) for seed in range(1, arguments.seeds + 1) for method in arguments.methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda t: train(out, t[0], arguments.recipe, t[1], threads, extra), todo))
    folders: dict[str, list[Path]] = {method: [] for method in arguments.methods}
    for (method, _), folder in zip(todo, done, strict=True):
        folders[method].append(folder)
    load = f"{arguments.jobs} runs at a time on {cores} cores, {threads} threads each"
    machine = f"{platform.machine()}, torch {torch.__version__}, {date.today()}"
    print(f"\n{arguments.recipe}, {arguments.score}, {arguments.seeds} seeds, {load}, {machine}\n")
    print(table(folders, arguments.score))


if __name__ == "__main__":
    main()
