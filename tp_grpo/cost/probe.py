"""One rollout and one update of a recipe at full size with random weights, timed on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tp_grpo.cost.estimate import estimate
from tp_grpo.models import architecture
from tp_grpo.plan import make_plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.settings import Settings
from tp_grpo.train.learner import Learner, check_learner
from tp_grpo.train.rollout import Sampler, velocity_of
from tp_grpo.train.update import Updater
from tp_grpo.types import PromptBatch


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


def probe(config: Settings, *, repeats: int) -> Probe:
    """Measure one batch of `sample.batch_size` rows, `repeats` times after a first one.

    Shared-state groups fork at the window's first step.

    Raises ValueError as `make_plan` and `architecture.read` do, and for a dtype or optimizer that
    the device does not have.
    """
    config = _one_batch(config)
    runtime = Runtime(config.model.dtype, (), ".")
    plan = make_plan(config, 1)
    check_learner(config)
    shapes = architecture.read(config.model)
    flops = estimate(config, 1).flops
    runtime.seed(config.seed)
    backbone = architecture.build(shapes, config.model, runtime.device)
    learner = Learner(runtime, backbone, config)
    cond = architecture.conditions(shapes, config.model, plan.batch_size, runtime.device)
    sigmas = backbone.sigmas(plan.steps)
    plan = plan.at(sigmas.tolist())
    updater = Updater(runtime.accelerator, learner, plan, config)
    velocity = velocity_of(backbone, sigmas, cond, config.sample.guidance_scale)
    images = plan.batch_size * plan.members
    prompt, member = torch.arange(images) // plan.group_size, torch.arange(images) % plan.group_size
    batch = PromptBatch([""] * images, [{}] * images, prompt, member)
    forks = torch.full((images,), config.sample.window_start)
    sample = Sampler(
        plan, config.sample, config.objective, (config.seed, 0), velocity, sigmas,
        backbone.latent_shape,
    )  # fmt: skip

    def roll_out() -> Any:
        return sample(batch, cond, forks)

    sampled, (rollout, clean, _) = _measure(roll_out, repeats, runtime.device)
    decoded, _ = _measure(lambda: backbone.decode(clean.flatten(0, 1)), repeats, runtime.device)
    advantage = torch.randn(images, plan.credited, device=runtime.device)
    # Only the first update sees the unmoved policy.
    ratio_dev = updater.step([rollout], [advantage], fresh=True).get("ratio_dev")
    learner.updated()

    def update() -> Any:
        return updater.step([rollout], [advantage], fresh=False)

    updated, _ = _measure(update, repeats, runtime.device)
    phases = {
        "rollout": Phase(*sampled, flops.sample),
        "decode": Phase(*decoded, flops.decode),
        "update": Phase(*updated, flops.train),
    }
    peak = matmul_peak(runtime.device, cond.embeds.dtype)
    return Probe(
        plan.batch_size, plan.epoch_nfe, plan.batch_images, plan.batch_size * plan.columns,
        phases, ratio_dev, peak,
    )  # fmt: skip


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, median of five; side 8192 on a GPU, 1024 on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    (seconds, _), _ = _measure(lambda: a @ b, 5, device)
    return 2 * side**3 / seconds


def _one_batch(config: Settings) -> Settings:
    """The config whose epoch is a single group, sampled in one call and trained in one update."""
    sample = replace(config.sample, groups_per_epoch=1, group_size=config.sample.batch_size)
    if config.points == "shared_state":
        groups = config.sample.batch_size
        sample = replace(config.sample, groups_per_epoch=groups, fork="first")
    train = replace(config.train, updates_per_epoch=1, inner_epochs=1)
    train = replace(train, max_ratio_dev=float("inf"))  # to be reported, not to stop
    return replace(config, sample=sample, train=train)


def _measure(
    work: Callable[[], Any], repeats: int, device: torch.device
) -> tuple[tuple[float, int], Any]:
    """((median seconds, peak bytes), result) of `work`, after one call that warms up."""
    result = work()
    times = []
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = work()
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return (statistics.median(times), peak), result
