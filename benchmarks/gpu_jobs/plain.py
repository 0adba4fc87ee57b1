"""The trainer's rollout and update against naive.py's, of the same model, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import naive
import torch
from timing import interleaved

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.epoch import PUBLISHED
from gpu_jobs.sizes import bench
from tp_grpo.cost.probe import Bench


def cases(tiny: bool) -> list[Case]:
    sizes = [(3, "euler", 60), (3, "reuse", 60), (1, "euler", 30), (9, "euler", 150)]
    return [
        Case(
            f"{name}, batch {rows}",
            seconds,
            partial(compare, tiny, 1 if rows > 3 else 3, rows, sample__completion=name),
        )
        for rows, name, seconds in (sizes[:2] if tiny else sizes)
    ]


def compare(tiny: bool, repeats: int, rows: int, **fields: Any) -> Figures:
    batch = bench("tp_grpo", PUBLISHED, tiny=tiny, sample__batch_size=rows, **fields)
    plain = Plain(batch)
    works = {"rollout": (plain.roll_out, batch.roll_out), "update": (plain.update, batch.update)}
    figures: Figures = {}
    for name, pair in works.items():
        sides = {
            side: partial(_waited, batch, work)
            for side, work in zip(("plain", "ours"), pair, strict=True)
        }
        for work in sides.values():
            work()
        seconds = interleaved(sides, repeats)
        figures |= {f"plain {name}, s": seconds["plain"], f"{name}, s": seconds["ours"]}
        figures[f"{name}, times as fast"] = seconds["plain"] / seconds["ours"]
    return figures


def _waited(batch: Bench, work: Callable[[], object]) -> None:
    work()
    batch.runtime.synchronize()


class Plain:
    """naive.py with the model, the policy and the optimizer of a bench."""

    def __init__(self, batch: Bench) -> None:
        self.batch, shape = batch, batch.backbone.latent_shape
        rows, window = batch.plan.batch_size, len(batch.plan.window)
        self.noise = torch.randn(rows, 1 + window, *shape, device=batch.device)
        self.advantage = batch.advantage.to(batch.device)
        self.sampled: naive.Sampled

    def roll_out(self) -> None:
        level, noise = self.batch.config.sample.noise_level, self.noise
        self.sampled = naive.sample(
            self._velocity, noise[:, 0], self.batch.sigmas, noise[:, 1:], noise_level=level
        )

    def update(self) -> None:
        batch, train = self.batch, self.batch.config.train
        naive.update(
            self._velocity,
            self._reference,
            self.sampled,
            self.advantage,
            batch.sigmas,
            batch.learner.optimizer,
            noise_level=batch.config.sample.noise_level,
            clip_range=train.clip_range,
            beta=train.beta,
            max_grad_norm=train.max_grad_norm,
        )

    def _velocity(self, x: torch.Tensor, step: int) -> torch.Tensor:
        batch = self.batch
        scale = batch.config.sample.guidance_scale
        v: torch.Tensor = batch.backbone.velocity(x, batch.sigmas[step], batch.cond, scale)
        return v

    def _reference(self, x: torch.Tensor, step: int) -> torch.Tensor:
        with self.batch.learner.policy.reference():
            return self._velocity(x, step)


JOB = Job(
    "plain",
    "The sampler and the update of TP-GRPO against a plain implementation, SD3.5-Medium, bf16.",
    cases,
)
