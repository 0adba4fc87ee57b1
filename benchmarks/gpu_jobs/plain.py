"""The trainer's rollout and update against naive.py's, of the same model, in turn."""

from __future__ import annotations

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
    sizes = {1: 30} if tiny else {3: 60, 1: 30}
    return [
        Case(
            f"{name}, batch {batch}",
            seconds,
            partial(compare, tiny, sample__completion=name, sample__batch_size=batch),
        )
        for batch, seconds in sizes.items()
        for name in ("euler", "reuse")
    ]


def compare(tiny: bool, **fields: Any) -> Figures:
    made = bench("tp_grpo", PUBLISHED, tiny=tiny, **fields)
    plain = Plain(made)
    works = {"plain": plain.roll_out, "ours": made.roll_out}
    trained = {"plain": plain.update, "ours": made.update}
    figures: Figures = {}
    for name, pair in {"rollout": works, "update": trained}.items():
        for work in pair.values():
            work()
        seconds = interleaved({side: partial(_waited, made, pair[side]) for side in pair}, 3)
        figures |= {f"plain {name}, s": seconds["plain"], f"{name}, s": seconds["ours"]}
        figures[f"{name}, times as fast"] = seconds["plain"] / seconds["ours"]
    return figures


def _waited(made: Bench, work: Any) -> None:
    work()
    made.runtime.synchronize()


class Plain:
    """naive.py with the model, the policy and the optimizer of a bench."""

    def __init__(self, made: Bench) -> None:
        self.made, shape = made, made.backbone.latent_shape
        rows, window = made.plan.batch_size, len(made.plan.window)
        self.noise = torch.randn(rows, 1 + window, *shape, device=made.device)
        self.advantage = made.advantage.to(made.device)
        self.sampled: naive.Sampled

    def roll_out(self) -> None:
        level, noise = self.made.config.sample.noise_level, self.noise
        self.sampled = naive.sample(
            self._velocity, noise[:, 0], self.made.sigmas, noise[:, 1:], noise_level=level
        )

    def update(self) -> None:
        made, train = self.made, self.made.config.train
        naive.update(
            self._velocity,
            self._reference,
            self.sampled,
            self.advantage,
            made.sigmas,
            made.learner.optimizer,
            noise_level=made.config.sample.noise_level,
            clip_range=train.clip_range,
            beta=train.beta,
            max_grad_norm=train.max_grad_norm,
        )

    def _velocity(self, x: torch.Tensor, step: int) -> torch.Tensor:
        made = self.made
        scale = made.config.sample.guidance_scale
        v: torch.Tensor = made.backbone.velocity(x, made.sigmas[step], made.cond, scale)
        return v

    def _reference(self, x: torch.Tensor, step: int) -> torch.Tensor:
        with self.made.learner.policy.reference():
            return self._velocity(x, step)


JOB = Job(
    "plain",
    "The sampler and the update of TP-GRPO against a plain implementation, SD3.5-Medium, bf16.",
    cases,
)
