"""What a batch of an epoch takes: seconds, work a second, and memory beside its estimate."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpu_jobs.case import Case, Child, Figures, Job
from gpu_jobs.sizes import settings, shapes
from tp_grpo.cost.estimate import estimate
from tp_grpo.cost.probe import Bench, matmul_peak, one_batch
from tp_grpo.models.architecture import Architecture
from tp_grpo.settings import Settings

GIB = 2**30
PUBLISHED = "pickscore_sd3_80gb"  # the published batch, in bf16


@dataclass(frozen=True)
class Method:
    """seconds: see `Case`; update: whether its update is measured."""

    algorithm: str
    seconds: float
    update: bool = True
    fields: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "Flow-GRPO": Method("flow_grpo", 45),
    "TP-GRPO, euler": Method("tp_grpo", 60, False),
    "TP-GRPO, reuse": Method("tp_grpo", 40, False, {"sample__completion": "reuse"}),
    "shared states": Method("shared_state", 35),
}


def cases(tiny: bool) -> list[Case]:
    return [
        Case(name, method.seconds, partial(measure, method, PUBLISHED, tiny))
        for name, method in METHODS.items()
    ]


class Expected:
    """The estimate of one batch, made in another process while the GPU works."""

    def __init__(self, config: Settings, of: Architecture) -> None:
        folder = Path(tempfile.mkdtemp())
        self.file = folder / "estimate.json"

        def work() -> None:
            counted = estimate(one_batch(config), 1, of)
            self.file.write_text(json.dumps([vars(counted.flops), counted.memory]))

        self.child = Child(work, folder / "log")

    def read(self) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
        """FLOPs by phase, and bytes by phase and part."""
        self.child.wait(300)
        flops, memory = json.loads(self.file.read_text())
        return flops, memory


def measure(method: Method, recipe: str, tiny: bool) -> Figures:
    config = settings(method.algorithm, recipe, tiny=tiny, **method.fields)
    of = shapes(config, tiny=tiny)
    expected = Expected(config, of)  # before the GPU is used
    batch = Bench(config, of)
    plan, matmul = batch.plan, matmul_peak(batch.device, batch.cond.embeds.dtype)
    works = {"sample": batch.roll_out, "decode": batch.decode}
    measured = {}
    for name, work in works.items():
        work()
        measured[name] = batch.measure(work, 1)
    figures: Figures = {"rows": plan.batch_size, "images": plan.batch_images}
    if method.update:
        figures["ratio_dev"] = batch.update(fresh=True).get("ratio_dev")
        measured["update"] = batch.measure(batch.update, 1)
    flops, memory = expected.read()
    counts = {"sample": plan.epoch_nfe, "decode": plan.batch_images}
    counts["update"] = plan.batch_size * plan.columns
    of_phase = {"sample": "sample", "decode": "decode", "update": "train"}
    for name, (seconds, peak) in measured.items():
        figures |= phase(name, seconds, counts[name], flops[of_phase[name]], matmul)
        figures |= bytes_of(name, peak, memory[name])
    return figures


def phase(name: str, seconds: float, count: int, flops: float, matmul: float) -> Figures:
    """count: model evaluations, images or points; matmul: FLOP/s of a matrix product."""
    unit = {"sample": "evaluations", "decode": "images", "update": "points"}[name]
    figures: Figures = {f"{name}, s": seconds, f"{name}, {unit}/s": count / seconds}
    if name != "decode":  # which computes in another dtype
        figures[f"{name}, TFLOP/s"] = flops / seconds / 1e12
        figures[f"{name}, share of matmul"] = flops / seconds / matmul
    return figures


def bytes_of(name: str, peak: int, parts: dict[str, int]) -> Figures:
    """Peak memory as measured (0: not on a CPU) and as estimated."""
    if not peak:
        return {}
    absent = parts.get("text encoders", 0)  # nothing is encoded here
    if name != "update":
        absent += parts["optimizer"]  # the first update makes it
    estimated = sum(parts.values()) - absent
    return {
        f"{name}, GiB": peak / GIB,
        f"{name}, GiB by estimate": estimated / GIB,
        f"{name}, error": f"{estimated / peak - 1:+.1%}",
    }


JOB = Job(
    "epoch",
    "One batch of SD3.5-Medium with random weights, 512 x 512, bf16: sampled, decoded, trained. "
    "The update of TP-GRPO is Flow-GRPO's with other advantages.",
    cases,
)
