"""How a rollout's cost grows with T, K, B, G, resolution, processes, its memory with B, `max_rows`.

Part of speed.py; alone: python benchmarks/scaling.py [--quick]. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import random_models

from tp_grpo.cost.meter import Meter
from tp_grpo.method import sampler
from tp_grpo.plan import make_plan
from tp_grpo.train.rollout import velocity_of

SMALL = random_models.SIZES["small"]
ROWS = 16  # max_rows, where it is not what varies
WINDOWS = [
    (4, 3, 0),
    (6, 5, 0),
    (8, 7, 0),
    (10, 9, 0),
    (10, 6, 0),
    (10, 3, 0),
    (10, 1, 0),
    (10, 5, 4),
]  # T, K, start
MIB = 2**20


class Rollout:
    """A rollout of a batch that can be repeated; `rows` and `calls` of its last time."""

    def __init__(
        self,
        steps: int,
        window: int,
        batch: int,
        *,
        start: int = 0,
        size: Any = SMALL,
        max_rows: int = ROWS,
    ) -> None:
        config = random_models.settings(
            size, steps=steps, window=window, batch=batch, max_rows=max_rows, start=start
        )
        self.backbone, cond = random_models.build(size, config)
        self.sigmas = self.backbone.sigmas(steps)
        self.plan, self.max_rows = (
            make_plan(config, 1, branches=True).at(self.sigmas.tolist()),
            max_rows,
        )
        self._velocity = velocity_of(self.backbone, self.sigmas, cond, 1.0)
        self.noise = torch.randn(batch, 1 + window, *self.backbone.latent_shape)
        self.rows = self.calls = 0

    def __call__(self) -> Tensor:
        """The clean latents (B, K+1, *L)."""
        self.rows = self.calls = 0
        sampled = sampler.staircase(
            self._counted,
            self.noise[:, 0],
            self.sigmas,
            self.noise[:, 1:],
            completion=self.plan.completion,
            kind="cps",
            noise_level=0.7,
            max_rows=self.max_rows,
        )
        return sampled.clean

    def _counted(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        return self._velocity(x, step, rows)

    @property
    def weights(self) -> list[Tensor]:
        return [
            *self.backbone.transformer.parameters(),
            *self.backbone.transformer.buffers(),
            self.noise,
        ]


def report(*, quick: bool, say: Callable[[str], None]) -> list[str]:
    """All tables as Markdown lines, each said as soon as it is known."""
    threads, lines = torch.get_num_threads(), list[str]()
    torch.set_num_threads(1)
    repeats = 3 if quick else 5
    for section in (evaluations, group, resolution, processes, memory):
        table = [*section(repeats, quick), ""]
        say("\n".join(table))
        lines += table
    torch.set_num_threads(threads)
    return lines


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds, after one time that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def evaluations(repeats: int, quick: bool) -> list[str]:
    """Counted rows must be the law's; seconds are fitted by so many a call and so many a row."""
    measured = []
    for steps, window, start in WINDOWS[::2] if quick else WINDOWS:
        for batch in (1, 8) if quick else (1, 3, 8):
            rollout = Rollout(steps, window, batch, start=start)
            seconds = median(rollout, repeats)
            law = steps + window * (steps - start - 1) - window * (window - 1) // 2
            assert rollout.rows == batch * law == batch * rollout.plan.nfe, (
                rollout.rows,
                batch,
                law,
            )
            measured.append(
                (steps, window, start, batch, law, rollout.calls, rollout.rows, seconds)
            )
    costs, fitted, share = fit([[m[5], m[6]] for m in measured], [m[7] for m in measured])
    lines = [
        "| T | K | window from | B | evaluations by law | rows counted | calls | ms | fitted, ms |",
        "|" + "---|" * 9,
    ]
    for (*numbers, calls, rows, seconds), guess in zip(measured, fitted, strict=True):
        cells = [*numbers, rows, calls, f"{1000 * seconds:.0f}", f"{1000 * guess:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    call, row = 1000 * costs[0], 1000 * costs[1]
    words = f"{call:.2f} ms a call and {row:.3f} ms a row explain {share:.1%} of the variance."
    return [
        *lines,
        "",
        f"Rows counted are B x (T + K (T - s - 1) - K (K - 1) / 2) in every line; {words}",
    ]


def group(repeats: int, quick: bool) -> list[str]:
    """A prompt's G images in batches of 4."""
    rollout = Rollout(6, 5, 4)
    lines = ["| G | ms | ms an image |", "|---|---|---|"]
    for size in (4, 8) if quick else (4, 8, 16, 24):
        seconds = median(lambda size=size: [rollout() for _ in range(size // 4)], repeats)  # type: ignore[misc]
        lines.append(f"| {size} | {1000 * seconds:.0f} | {1000 * seconds / size:.1f} |")
    return lines


def resolution(repeats: int, quick: bool) -> list[str]:
    lines = ["| image side | image tokens | ms an evaluation |", "|---|---|---|"]
    for side in (32, 64) if quick else (32, 64, 96, 128):
        rollout = Rollout(4, 3, 4, size=replace(SMALL, side=side))
        seconds = median(rollout, repeats)
        lines.append(f"| {side} | {(side // 8) ** 2} | {1000 * seconds / rollout.rows:.2f} |")
    return lines


def processes(repeats: int, quick: bool) -> list[str]:
    """The same 16 images by 1 and 2 processes of one thread each, as ranks share a group."""
    lines = ["| processes | ms, 16 images | against 1 |", "|---|---|---|"]
    seconds = {count: _spread(count, 16, repeats) for count in (1, 2)}
    for count, elapsed in seconds.items():
        lines.append(f"| {count} | {1000 * elapsed:.0f} | {seconds[1] / elapsed:.2f} x |")
    return lines


def _spread(count: int, images: int, repeats: int) -> float:
    """Median over the repeats of the slowest process' seconds."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=_worker, args=(barrier, results, images // count, repeats))
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    times = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return statistics.median(max(ranks) for ranks in zip(*times, strict=True))


def _worker(barrier: Any, results: Any, images: int, repeats: int) -> None:
    torch.set_num_threads(1)
    rollout, times = Rollout(6, 5, 4), []
    rollout()
    for _ in range(repeats):
        barrier.wait(timeout=300)
        start = time.perf_counter()
        for _ in range(images // 4):
            rollout()
        times.append(time.perf_counter() - start)
    results.put(times)


def memory(repeats: int, quick: bool) -> list[str]:
    """Peak bytes of a rollout without weights and noise, fitted by bytes a sample and a row."""
    measured = []
    for batch in (2, 8) if quick else (2, 4, 8, 16):
        for max_rows in (4, 16) if quick else (4, 8, 16, 32, 64):
            rollout = Rollout(6, 5, batch, max_rows=max_rows)
            with Meter(rollout.weights) as meter:
                rollout()
            largest = max(
                batch, min(max_rows, 5 * batch)
            )  # rows of a call: the five branches at most
            measured.append((batch, max_rows, largest, meter.peak / MIB))
    costs, fitted, share = fit([[m[0], m[2]] for m in measured], [m[3] for m in measured])
    lines = ["| B | max_rows | largest call | peak, MiB | fitted, MiB |", "|---|---|---|---|---|"]
    for (batch, max_rows, largest, peak), guess in zip(measured, fitted, strict=True):
        lines.append(f"| {batch} | {max_rows} | {largest} | {peak:.2f} | {guess:.2f} |")
    words = f"{costs[0]:.3f} MiB a sample and {costs[1]:.3f} MiB a row of the largest call"
    return [*lines, "", f"{words} explain {share:.1%} of the variance."]


def fit(inputs: list[list[int]], outputs: list[float]) -> tuple[list[float], list[float], float]:
    """Least squares without a constant: coefficients, fits, share of variance explained."""
    a, y = np.array(inputs, dtype=float), np.array(outputs)
    coefficients = np.linalg.lstsq(a, y, rcond=None)[0]
    guessed = a @ coefficients
    return (
        coefficients.tolist(),
        guessed.tolist(),
        float(1 - ((y - guessed) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    report(quick=parser.parse_args().quick, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
