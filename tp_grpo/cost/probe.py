"""A batch of a recipe at full size, with random weights: sampled and trained on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tp_grpo.cost.estimate import Estimate, estimate
from tp_grpo.models import architecture
from tp_grpo.models.architecture import Architecture
from tp_grpo.plan import make_plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.settings import Settings
from tp_grpo.train.learner import Learner, check_learner
from tp_grpo.train.rollout import Sampler, velocity_of
from tp_grpo.train.update import Updater
from tp_grpo.types import PromptBatch, Rollout, on_host


@dataclass(frozen=True)
class Phase:
    """Median seconds, peak device memory in bytes (0 on a CPU), FLOPs (0: not counted)."""

    seconds: float
    peak: int
    flops: float


@dataclass(frozen=True)
class Probe:
    """The measurements of one batch."""

    batch_size: int  # rows of a rollout call: images, or groups
    evaluations: int  # of the model, in the rollout
    images: int  # decoded
    trained: int  # points that the update looks at
    phases: dict[str, Phase]
    ratio_dev: float | None  # max |ratio - 1| of the unmoved policy, where there is a ratio
    matmul: float  # FLOP/s of a large square matrix product in the model's dtype, a ceiling


class Bench:
    """One batch of `sample.batch_size` rows, and the learner that an update of it moves.

    Shared-state groups fork at the window's first step.
    """

    def __init__(self, config: Settings, shapes: Architecture | None = None) -> None:
        """shapes: of the model; None: of the checkpoint that the config names.

        Raises ValueError as `make_plan` and `architecture.read` do, and for a dtype or optimizer
        that the device does not have.
        """
        self.config = config = one_batch(config)
        self.shapes = shapes or architecture.read(config.model)
        self.runtime = Runtime(config.model.dtype, (), ".")
        self.device = self.runtime.device
        plan = make_plan(config, 1)
        check_learner(config)
        self.runtime.seed(config.seed)
        self.backbone = architecture.build(self.shapes, config.model, self.device)
        self.learner = Learner(self.runtime, self.backbone, config)
        rows = plan.batch_size
        self.cond = architecture.conditions(self.shapes, config.model, rows, self.device)
        self.sigmas = self.backbone.sigmas(plan.steps)
        self.plan = plan = plan.at(self.sigmas.tolist())
        self.updater = Updater(self.runtime.accelerator, self.learner, plan, config)
        self.images = plan.batch_size * plan.members
        self.advantage = torch.randn(self.images, plan.credited)
        self.rollout: Rollout
        self.clean: Tensor

    def estimate(self) -> Estimate:
        """What was expected of this batch."""
        return estimate(self.config, 1, self.shapes)

    def roll_out(self) -> None:
        """Sample the batch, with its branches."""
        plan, config = self.plan, self.config
        number = torch.arange(self.images)
        prompt, member = number // plan.group_size, number % plan.group_size
        batch = PromptBatch([""] * self.images, [{}] * self.images, prompt, member)
        velocity = velocity_of(self.backbone, self.sigmas, self.cond, config.sample.guidance_scale)
        sample = Sampler(
            plan, config.sample, config.objective, (config.seed, 0), velocity, self.sigmas,
            self.backbone.latent_shape,
        )  # fmt: skip
        forks = torch.full((self.images,), config.sample.window_start)
        self.rollout, self.clean, _ = sample(batch, self.cond, forks)
        if config.sample.store_on_cpu:
            self.rollout = on_host(self.rollout)

    def decode(self) -> Tensor:
        """Every completion -> (images, 3, H, W)."""
        images: Tensor = self.backbone.decode(self.clean.flatten(0, 1))
        return images

    def update(self, *, fresh: bool = False) -> dict[str, float]:
        """Descend once; fresh: the policy has not moved since the batch was sampled."""
        report = self.updater.step([self.rollout], [self.advantage], fresh=fresh)
        self.learner.updated()
        return report

    def deviations(self) -> Tensor:
        """|ratio - 1| of every target of the sampled points, by the passes that training makes.

        Before the first update, of a policy that has not moved: 0 is the goal.
        """
        deviations = []
        for column in range(self.plan.columns):
            rollouts, advantages = [self.rollout], [self.advantage]
            points, cond, stored = self.updater.reader.read(rollouts, advantages, [(0, column)])
            assert stored is not None, "the objective looks at points that were not sampled"
            scale = self.updater.guidance_scale
            v = self.backbone.velocity(points.x, points.sigma, cond, scale).detach()
            deviations.append(points.log_ratio(v, stored).expm1().abs().flatten())
        return torch.cat(deviations)

    def measure(self, work: Callable[[], Any], repeats: int) -> tuple[float, int]:
        """Median seconds and peak bytes on the device of `work`, which has run before."""
        times, cuda = [], self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(repeats):
            self.runtime.synchronize()
            start = time.perf_counter()
            work()
            self.runtime.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times), torch.cuda.max_memory_allocated(self.device) if cuda else 0


def probe(config: Settings, *, repeats: int) -> Probe:
    """Measure one batch `repeats` times after a first one. Raises ValueError as `Bench` does."""
    bench = Bench(config)
    flops, plan = bench.estimate().flops, bench.plan
    work = {"rollout": (bench.roll_out, flops.sample), "decode": (bench.decode, flops.decode)}
    phases = {}
    for name, (do, count) in work.items():
        do()
        phases[name] = Phase(*bench.measure(do, repeats), count)
    ratio_dev = bench.update(fresh=True).get("ratio_dev")  # only it sees the unmoved policy
    bench.update()
    phases["update"] = Phase(*bench.measure(bench.update, repeats), flops.train)
    peak = matmul_peak(bench.device, bench.cond.embeds.dtype)
    trained = plan.batch_size * plan.columns
    return Probe(
        plan.batch_size, plan.epoch_nfe, plan.batch_images, trained, phases, ratio_dev, peak
    )


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, median of five; side 8192 on a GPU, 256 on a CPU."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 256
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[1:])


def one_batch(config: Settings) -> Settings:
    """The config whose epoch is a single group, sampled in one call and trained in one update."""
    sample = replace(config.sample, groups_per_epoch=1, group_size=config.sample.batch_size)
    if config.points == "shared_state":
        groups = config.sample.batch_size
        sample = replace(config.sample, groups_per_epoch=groups, fork="first")
    images = sample.group_size if config.points == "shared_state" else sample.window_size
    sample = replace(sample, max_rows=min(sample.max_rows, images * sample.batch_size))
    train = replace(config.train, updates_per_epoch=1, inner_epochs=1)
    train = replace(train, max_ratio_dev=float("inf"))  # to be reported, not to stop
    # There are no evaluations, which may take larger calls.
    return replace(config, sample=sample, train=train, eval=replace(config.eval, batch_size=1))
