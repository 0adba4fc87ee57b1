"""Every method at equal CPU seconds: python benchmarks/methods.py [--out runs/methods] [--jobs 2]

1. costs: CPU seconds of an epoch of each method, all of them in turn in one process of one thread.
   They turn seconds into epochs, so that a disturbed machine changes no result.
2. rates: each method at three learning rates on seed 5, which the comparison does not use; the
   one with the best held-out score after 140 seconds is kept.
3. runs: each method with its rate on seeds 1 to 4, evaluated after 70, 140, 280 and 560 seconds.

Hours on 2 cores; everything finished is kept, runs that were stopped resume, and the lines of what
was measured stay in --results. --show prints the tables of these and draws the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import methods_tables
from methods_tables import RATE_SEED, Line

from config import tp_grpo
from tp_grpo.store.files import expanded

ROOT = Path(__file__).resolve().parents[1]
MARKS = (70, 140, 280, 560)  # CPU seconds
RATES = (7e-4, 1.5e-3, 3e-3)
RATE_MARK = 140  # at which learning rates are compared
ROUNDS = 5
COMMON = {"tracking.trackers": (), "tracking.images_every": 10**6, "checkpoint.keep_every": 10**6}
COMMON |= {"eval.images": 786, "eval.every": 10**6}


@dataclass(frozen=True)
class Method:
    """algorithm: a file of config/; fields: what differs from its recipe."""

    algorithm: str
    fields: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "Flow-GRPO": Method("flow_grpo"),
    "shared states": Method("shared_state"),
    "TP-GRPO": Method("flow_grpo", {"credit.name": "turning_point"}),
    "ELBO-PG": Method("elbo_pg"),
    "NFT": Method("nft"),
    "AWM": Method("awm"),
    "DGPO": Method("dgpo"),
    "TP-GRPO, matching": Method("tp_grpo", tp_grpo.FASTER),  # at other recipes too
    "shared states, next state": Method(
        "shared_state", {"objective.name": "grpo", "train.step_weight": "velocity"}
    ),
    # The log-ratio of GRPO-Guard is the Gaussian's times the step's std, 0.3 on the average.
    "GRPO-Guard": Method(
        "flow_grpo",
        {"objective.name": "guard", "train.clip_range": 3e-5, "train.step_weight": "uniform"},
    ),
    "Flow-DPPO": Method("flow_grpo", {"objective.name": "dppo"}),
}


@dataclass(frozen=True)
class Job:
    """A run: one method, seed and learning rate, evaluated at some of MARKS."""

    method: str
    seed: int
    rate: float
    marks: tuple[int, ...]

    @property
    def name(self) -> str:
        method = "".join(c if c.isalnum() else "_" for c in self.method.lower())
        return f"{method}-{self.rate:g}-{self.seed}"

    def epochs(self, cost: float) -> dict[int, int]:
        """The epoch that ends nearest to each mark, at `cost` seconds an epoch."""
        return {mark: max(1, round(mark / cost)) for mark in self.marks}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=expanded, default=ROOT / "runs/methods", help="the runs' folders"
    )
    parser.add_argument("--results", type=expanded, default=ROOT / "docs/curves/methods.jsonl")
    parser.add_argument("--figure", type=expanded, default=ROOT / "docs/methods.png")
    parser.add_argument("--recipe", default="shapes_tiny")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS, help="CPU seconds")
    parser.add_argument("--rate-mark", type=int, default=RATE_MARK, help="CPU seconds of step 2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--show", action="store_true", help="the tables alone, of what is there")
    options = parser.parse_args(arguments)
    if not options.show:
        measure(options)
    print(methods_tables.tables(methods_tables.read(options.results), options.figure))
    return 0


def measure(options: argparse.Namespace) -> None:
    """Make what --results lacks."""
    costs = epoch_costs(options)
    names, mark = options.methods, options.rate_mark
    run_all(
        [Job(name, RATE_SEED, rate, (mark,)) for rate in RATES for name in names], costs, options
    )
    rates = methods_tables.best_rates(methods_tables.read(options.results), RATE_SEED, mark)
    # Seeds outermost: after any seed the methods can be compared.
    marks = tuple(options.marks)
    run_all(
        [Job(name, seed, rates[name], marks) for seed in options.seeds for name in names],
        costs,
        options,
    )


def epoch_costs(options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds an epoch by method, measured once: a run's epochs depend on it."""
    known = {line.method: line.cost for line in methods_tables.read(options.results, "cost")}
    if set(options.methods) <= set(known):
        return known
    chosen = {name: (METHODS[name].algorithm, METHODS[name].fields | COMMON) for name in METHODS}
    call = {"costs": chosen, "recipe": options.recipe, "out": str(options.out), "rounds": ROUNDS}
    call_process(call, options.out / "costs.log")
    costs: dict[str, float] = json.loads((options.out / "costs.json").read_text())
    machine = f"{platform.machine()}, torch {torch.__version__}"
    for name, cost in costs.items():
        methods_tables.append(options.results, Line("cost", name, cost=cost, machine=machine))
    return costs


def run_all(jobs: Sequence[Job], costs: dict[str, float], options: argparse.Namespace) -> None:
    """The jobs without results, `options.jobs` at a time; each adds its lines when it is done."""
    lines = methods_tables.read(options.results)
    done = {(line.method, line.seed, line.rate, line.mark) for line in lines}
    todo = [
        job
        for job in jobs
        if any((job.method, job.seed, job.rate, mark) not in done for mark in job.marks)
    ]
    based: set[int] = {line.seed for line in lines if line.mark == 0}

    def run(job: Job) -> None:
        epochs = job.epochs(costs[job.method])
        base = job.seed not in based and job.method == "Flow-GRPO"
        based.add(job.seed)
        method = METHODS[job.method]
        fields = method.fields | COMMON | {"seed": job.seed, "train.learning_rate": job.rate}
        fields |= {"run_name": job.name, "output_dir": str(options.out)}
        call = {"algorithm": method.algorithm, "recipe": options.recipe, "fields": fields}
        call |= {"marks": sorted(set(epochs.values())), "base": base}
        call_process(call, options.out / f"{job.name}.log")
        folder = options.out / job.name
        for line in methods_tables.lines_of(folder, asdict(job), epochs, base):
            methods_tables.append(options.results, line)
        print(f"done: {job.name}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, job) for job in todo]
        try:
            for result in runs:
                result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def call_process(call: dict[str, Any], log: Path) -> None:
    """marked_run.py in a process of one thread. Raises RuntimeError that names its words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks/marked_run.py"), json.dumps(call)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as words:
        code = subprocess.run(
            command, cwd=ROOT, check=False, env=environment, stdout=words, stderr=words
        ).returncode
    if code:
        raise RuntimeError(f"a run failed with code {code}; its words are in {log}")


if __name__ == "__main__":
    sys.exit(main())
