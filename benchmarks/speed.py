"""The trainer against naive.py: python benchmarks/speed.py [--quick] [--out TABLE.md]

Both sample and update the same random SD3-class transformers from the same noise, in one process,
taking turns. First the results must agree: images to 1e-5, the gradient's norm to 1e-4, the updated
weights. Then come medians, how cost grows (scaling.py) and where an epoch's seconds go (phases.py).
Prints Markdown; under 10 minutes on 2 cores, about 1 with --quick.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import naive
import phases
import random_models
import scaling
import shared_states
from timing import interleaved

from tp_grpo.method import sampler
from tp_grpo.models.policy import Policy
from tp_grpo.plan import make_plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.store.files import expanded
from tp_grpo.train.learner import Learner, make_optimizer
from tp_grpo.train.rollout import velocity_of
from tp_grpo.train.update import Updater
from tp_grpo.types import Trajectories

COMPLETIONS = ("euler", "reuse")
STACKED = 3  # steps in a backward pass, beside the default of one
SCHEDULES = ((10, 9), (6, 5))  # T and K as published for SD3 and FLUX


@dataclass(frozen=True)
class Case:
    size: str
    steps: int
    window: int
    batch: int
    threads: int


class Naive:
    """naive.py around a transformer of its own."""

    def __init__(
        self, config: Any, size: random_models.Size, noise: Tensor, advantages: Tensor
    ) -> None:
        self.config, self.noise, self.advantages = config, noise, advantages
        self.backbone, self.cond = random_models.build(size, config)
        torch.manual_seed(1)  # of the adapters
        targets = self.backbone.lora_targets
        self.policy = Policy(self.backbone.transformer, rank=32, alpha=64, targets=targets, kl=True)
        self.optimizer = make_optimizer(config.train, list(self.policy.parameters.values()))
        self.sigmas = self.backbone.sigmas(config.sample.steps)
        self.sampled: naive.Sampled

    def roll_out(self) -> Tensor:
        sigmas, level = self.sigmas, self.config.sample.noise_level
        self.sampled = naive.sample(
            self._velocity, self.noise[:, 0], sigmas, self.noise[:, 1:], noise_level=level
        )
        return torch.stack(self.sampled.clean, 1)

    def update(self, *, fresh: bool) -> float:
        c = self.config
        options = {
            "clip_range": c.train.clip_range,
            "beta": c.train.beta,
            "max_grad_norm": c.train.max_grad_norm,
        }
        return naive.update(
            self._velocity,
            self._reference,
            self.sampled,
            self.advantages,
            self.sigmas,
            self.optimizer,
            noise_level=c.sample.noise_level,
            **options,
        )

    def _velocity(self, x: Tensor, step: int) -> Tensor:
        v: Tensor = self.backbone.velocity(x, self.sigmas[step], self.cond, 1.0)
        return v

    def _reference(self, x: Tensor, step: int) -> Tensor:
        with self.policy.reference():
            return self._velocity(x, step)


class Real:
    """The repository's sampler and updater around a transformer of their own."""

    def __init__(
        self, config: Any, size: random_models.Size, noise: Tensor, advantages: Tensor
    ) -> None:
        self.config, self.noise, self.advantages = config, noise, advantages
        self.backbone, self.cond = random_models.build(size, config)
        runtime = Runtime("fp32", (), ".")
        torch.manual_seed(1)
        self.learner = Learner(runtime, self.backbone, config)
        self.policy = self.learner.policy
        self.sigmas = self.backbone.sigmas(config.sample.steps)
        self.plan = make_plan(config, 1, branches=True).at(self.sigmas.tolist())
        self.updater = Updater(runtime.accelerator, self.learner, self.plan, config)
        self.states: Tensor
        self.velocities: Tensor

    def roll_out(self, completion: str = "euler") -> Tensor:
        sample = self.config.sample
        self.states, self.velocities, clean = sampler.staircase(
            velocity_of(self.backbone, self.sigmas, self.cond, 1.0),
            self.noise[:, 0],
            self.sigmas,
            self.noise[:, 1:],
            completion=replace(self.plan.completion, name=completion),
            kind=sample.kind,
            noise_level=sample.noise_level,
            max_rows=sample.max_rows,
        )
        return clean

    def update(self, *, fresh: bool, stacked: int = 1) -> float:
        self.updater.begin(replace(self.plan, stacked=stacked))
        rollout = Trajectories(self.cond, self.states, self.velocities, self.states[:, :0])
        return self.updater.step([rollout], [self.advantages], fresh=fresh)["grad_norm"]


def contestants(case: Case) -> tuple[Naive, Real]:
    size = random_models.SIZES[case.size]
    rows = 4 * case.batch
    config = random_models.settings(
        size, steps=case.steps, window=case.window, batch=case.batch, max_rows=rows
    )
    generator = torch.Generator().manual_seed(2)
    side = size.side // random_models.PIXELS
    noise = torch.randn(
        case.batch, 1 + case.window, random_models.CHANNELS, side, side, generator=generator
    )
    advantages = torch.randn(case.batch, case.window, generator=generator)
    return Naive(config, size, noise, advantages), Real(config, size, noise, advantages)


def check(plain: Naive, real: Real) -> dict[str, float]:
    """The largest differences; raises AssertionError where the two do not compute the same."""
    ours, theirs = real.roll_out(), plain.roll_out()
    images = [real.backbone.decode(clean.flatten(0, 1)) for clean in (ours, theirs)]
    reused = real.backbone.decode(real.roll_out("reuse").flatten(0, 1))
    real.roll_out()
    differences = {"images": float((images[0] - images[1]).abs().max())}
    differences["reuse"] = float((reused - images[1]).norm() / images[1].norm())
    norms = real.update(fresh=True), plain.update(fresh=True)
    differences["gradient"] = abs(norms[0] / norms[1] - 1)
    differences["weights"] = distance(real.policy, plain.policy)
    limits = {"images": 1e-5, "reuse": 1e-2, "gradient": 1e-4, "weights": 1e-2}
    exceeded = [name for name, limit in limits.items() if not differences[name] <= limit]
    assert not exceeded, f"{differences} exceeds {limits}"
    return differences


def distance(a: Policy, b: Policy) -> float:
    """Of what was learnt, relative: B starts at zero, so that all of it is."""
    pairs = [
        (a.parameters[name].detach(), p.detach())
        for name, p in b.parameters.items()
        if "lora_B" in name
    ]
    apart = torch.stack([(mine - other).norm() for mine, other in pairs]).norm()
    return float(apart / torch.stack([other.norm() for _, other in pairs]).norm())


def measure(case: Case, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Differences, median seconds."""
    torch.set_num_threads(case.threads)
    plain, real = contestants(case)
    differences = check(plain, real)
    works: dict[str, Callable[[], Any]] = {"naive": plain.roll_out}
    works |= {name: functools.partial(real.roll_out, name) for name in COMPLETIONS}
    seconds = interleaved(works, repeats)
    updates = {
        "naive update": lambda: plain.update(fresh=False),
        "update": lambda: real.update(fresh=False),
        "stacked": lambda: real.update(fresh=False, stacked=STACKED),
    }
    return differences, seconds | interleaved(updates, repeats)


def row(case: Case, seconds: dict[str, float]) -> str:
    schedule = f"T = {case.steps}, K = {case.window}"
    cells = [
        case.size,
        schedule,
        str(case.batch),
        str(case.threads),
        f"{1000 * seconds['naive']:.0f}",
    ]
    cells += [
        f"{1000 * seconds[name]:.0f} ({seconds['naive'] / seconds[name]:.2f} x)"
        for name in COMPLETIONS
    ]
    cells.append(f"{1000 * seconds['naive update']:.0f}")
    for name in ("update", "stacked"):
        cells.append(
            f"{1000 * seconds[name]:.0f} ({seconds['naive update'] / seconds[name]:.2f} x)"
        )
    return "| " + " | ".join(cells) + " |"


def cases(quick: bool) -> list[Case]:
    everything = sorted({1, torch.get_num_threads()})
    sizes, batches = (("small",), (1, 9)) if quick else (tuple(random_models.SIZES), (1, 3, 9))
    return [
        Case(size, steps, window, batch, threads)
        for size in sizes
        for threads in (everything[:1] if quick else everything)
        for steps, window in SCHEDULES
        for batch in batches
    ]


def machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {date.today()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="the small transformer, one thread, fewer cases"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timings of everything; their median is shown"
    )
    parser.add_argument("--out", type=expanded, help="write the tables there as well")
    arguments = parser.parse_args()
    start, worst, threads = time.perf_counter(), dict[str, float](), torch.get_num_threads()
    columns = [
        "transformer",
        "schedule",
        "batch",
        "threads",
        "naive rollout, ms",
        *COMPLETIONS,
        "naive update, ms",
    ]
    columns += ["update", f"update, {STACKED} steps a pass"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    print("\n".join(lines), flush=True)
    for case in cases(arguments.quick):
        differences, seconds = measure(case, arguments.repeats)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in differences.items()}
        lines.append(row(case, seconds))
        print(lines[-1], flush=True)
    largest = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    lines += ["", f"Largest differences: {largest}.", ""]
    print("\n".join(lines[-3:]), flush=True)
    torch.set_num_threads(threads)
    lines += shared_states.report(quick=arguments.quick, say=lambda text: print(text, flush=True))
    lines += scaling.report(quick=arguments.quick, say=lambda text: print(text, flush=True))
    table = phases.report("paper", 3 if arguments.quick else 4)
    print("\n".join(table), flush=True)
    lines += table
    lines += ["", f"{machine()}; {time.perf_counter() - start:.0f} s in all."]
    print("\n".join(lines[-2:]))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
