"""Compare the methods: python benchmarks/credit.py [--recipe shapes_tiny] [--seeds 4] [--jobs 2]

Trains every method with every seed (finished runs are kept, stopped ones resume), prints the
held-out score against updates, evaluations and seconds as Markdown, and draws it. An option of
scripts/train.py, such as --config.epochs=5, goes to all runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import curves

from config import recipes
from tp_grpo.store.files import expanded

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "Flow-GRPO"


@dataclass(frozen=True)
class Method:
    """run: the run folder's name before its seed; longer: its epochs, in those of the recipe.

    The paper's methods are Flow-GRPO with another credit.
    """

    run: str
    credit: str
    algorithm: str = "flow_grpo"
    fields: dict[str, object] = field(default_factory=dict)
    longer: int = 1


MULTISTEP = {"sample.completion": "multistep", "sample.completion_steps": 3}
METHODS = {
    # Without branches an epoch takes less than half the seconds: twice the epochs.
    BASELINE: Method("terminal", "terminal", longer=2),
    "incremental": Method("incremental", "incremental"),
    "TP-GRPO": Method("turning_point", "turning_point"),
    "TP-GRPO, reuse": Method("reuse", "turning_point", fields={"sample.completion": "reuse"}),
    "TP-GRPO, matching": Method("matching", "turning_point", "tp_grpo"),
    "TP-GRPO, multistep 3": Method("multistep", "turning_point", fields=MULTISTEP),
    "value": Method("value", "value"),
    "value, multistep 3": Method("value_multistep", "value", fields=MULTISTEP),
}


def command(
    method: Method, recipe: str, seed: int, out: Path, every: int, extra: Sequence[str]
) -> list[str]:
    """scripts/train.py for that run."""
    epochs = method.longer * recipes.build(method.algorithm, method.credit, recipe).epochs
    fields = {
        "run_name": f"{method.run}-{seed}",
        "output_dir": out,
        "seed": seed,
        "credit.name": method.credit,
    }
    fields |= {"epochs": epochs, "eval.every": every or epochs, **method.fields}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return [
        sys.executable,
        "scripts/train.py",
        f"--config=config/{method.algorithm}.py:{recipe}",
        *options,
        *extra,
    ]


def train(line: list[str], log: Path, threads: int) -> None:
    """One run, its words in `log`. Raises RuntimeError that names it when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as words:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            line, cwd=ROOT, check=False, env=environment, stdout=words, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise RuntimeError(f"a run failed with code {done.returncode}; its words are in {log}")
    print(f"done: {log.with_suffix('')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=expanded, default=Path("runs/credit"))
    parser.add_argument("--recipe", default="shapes_tiny")
    parser.add_argument("--seeds", type=int, default=4, help="seeds 1 .. N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--score", default="shapes/exact")
    parser.add_argument(
        "--every", type=int, default=14, help="epochs between evaluations; 0: at the end alone"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, the cores divided among them"
    )
    parser.add_argument(
        "--figure", type=expanded, help="where it is drawn; else curves.png in --out"
    )
    arguments, extra = parser.parse_known_args()
    out, cores = arguments.out.resolve(), os.cpu_count() or 1
    threads = max(1, cores // arguments.jobs)
    # Seeds outermost: a drift of the machine meets all methods alike.
    todo = [
        (METHODS[name], seed)
        for seed in range(1, arguments.seeds + 1)
        for name in arguments.methods
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [
            pool.submit(
                train,
                command(method, arguments.recipe, seed, out, arguments.every, extra),
                out / f"{method.run}-{seed}.log",
                threads,
            )
            for method, seed in todo
        ]
        try:
            for run in runs:
                run.result()
        finally:
            pool.shutdown(cancel_futures=True)
    seeds = range(1, arguments.seeds + 1)
    measured = {
        name: curves.read([out / f"{METHODS[name].run}-{seed}" for seed in seeds], arguments.score)
        for name in arguments.methods
    }
    figure = arguments.figure or out / "curves.png"
    curves.draw(measured, arguments.score, figure)
    load = f"{arguments.jobs} runs at a time on {cores} cores, {threads} threads each"
    machine = f"{platform.machine()}, torch {torch.__version__}, {date.today()}"
    print(
        f"\n{arguments.recipe}, {arguments.score}, {arguments.seeds} seeds, {load}, {machine}; "
        f"figure: {figure}\n"
    )
    print(f"{curves.compare(measured, BASELINE)}\n\n{curves.table(measured)}")


if __name__ == "__main__":
    main()
