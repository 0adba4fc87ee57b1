"""What a batch of an epoch takes: seconds, work a second, and memory beside its estimate."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.sizes import bench
from tp_grpo.cost.estimate import Estimate
from tp_grpo.cost.probe import Bench, matmul_peak

GB = 2**30
PUBLISHED = "pickscore_sd3_80gb"  # the published batch, in bf16
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Flow-GRPO": ("flow_grpo", {}),
    "TP-GRPO, euler": ("tp_grpo", {}),
    "TP-GRPO, reuse": ("tp_grpo", {"sample__completion": "reuse"}),
    "shared states": ("shared_state", {}),
}
SECONDS = {"Flow-GRPO": 45, "TP-GRPO, euler": 60, "TP-GRPO, reuse": 40, "shared states": 35}


def cases(tiny: bool) -> list[Case]:
    return [
        # The update of TP-GRPO is Flow-GRPO's: the same points, another advantage.
        Case(name, SECONDS[name], partial(measure, algorithm, PUBLISHED, tiny, update, **fields))
        for name, (algorithm, fields) in METHODS.items()
        for update in [algorithm != "tp_grpo"]
    ]


def measure(algorithm: str, recipe: str, tiny: bool, update: bool, **fields: Any) -> Figures:
    made = bench(algorithm, recipe, tiny=tiny, **fields)
    expected, peak = made.estimate(), matmul_peak(made.device, made.cond.embeds.dtype)
    figures: Figures = {"rows": made.plan.batch_size, "images": made.plan.batch_images}
    made.roll_out()
    seconds, most = made.measure(made.roll_out, 1)
    figures |= phase("rollout", seconds, made.plan.epoch_nfe, expected.flops.sample, peak)
    figures |= memory("rollout", most, expected, "sample")
    made.decode()
    seconds, most = made.measure(made.decode, 1)
    figures |= {"decode, images/s": made.plan.batch_images / seconds}
    figures |= memory("decode", most, expected, "decode")
    if update:
        figures |= _updated(made, expected, peak)
    return figures


def _updated(made: Bench, expected: Estimate, peak: float) -> Figures:
    figures: Figures = {"ratio_dev": made.update(fresh=True).get("ratio_dev")}
    seconds, most = made.measure(made.update, 1)
    points = made.plan.batch_size * made.plan.columns
    figures |= phase("update", seconds, points, expected.flops.train, peak)
    return figures | memory("update", most, expected, "update")


def phase(name: str, seconds: float, count: int, flops: float, peak: float) -> Figures:
    """count: model evaluations, or points in an update; peak: FLOP/s of a matrix product."""
    unit = "points" if name == "update" else "evaluations"
    return {
        f"{name}, s": seconds,
        f"{name}, {unit}/s": count / seconds,
        f"{name}, TFLOP/s": flops / seconds / 1e12,
        f"{name}, share of matmul": flops / seconds / peak,
    }


def memory(name: str, measured: int, expected: Estimate, phase: str) -> Figures:
    """Peak bytes as measured (0: not on a CPU), and the estimate's error."""
    if not measured:
        return {}
    parts = expected.memory[phase]
    estimated = sum(parts.values()) - parts.get("text encoders", 0)  # nothing is encoded here
    return {f"{name}, GB": measured / GB, f"{name}, estimate's error": estimated / measured - 1}


JOB = Job(
    "epoch",
    "One batch of SD3.5-Medium with random weights, 512 x 512, bf16: sampled, decoded, trained.",
    cases,
)
