"""What a run will take, before anything loads: images, FLOPs, memory by phase, hours.

    python scripts/estimate.py --config=config/tp_grpo.py:pickscore_flux --world-size 32 \\
        --gpu-memory 80 --tflops 400
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from _config import CONFIG, mistake, parse
from absl import app, flags

if TYPE_CHECKING:
    from tp_grpo.cost.estimate import Estimate
    from tp_grpo.settings import Settings

_WORLD_SIZE = flags.DEFINE_integer("world-size", 1, "GPUs", lower_bound=1)
_GPU_MEMORY = flags.DEFINE_float("gpu-memory", 80.0, "GB (2^30 bytes) a GPU", lower_bound=0.0)
_TFLOPS = flags.DEFINE_float("tflops", 200.0, "10^12 FLOP/s a GPU sustains", lower_bound=1e-9)
_JSON = flags.DEFINE_boolean("json", False, "print JSON instead of text")

MB, GB = 2**20, 2**30
SPARE = 0.1  # of the GPU, for fragments, kernels' workspaces and the CUDA context
# What shrinks a phase: each field, and the values with which it has done what it can.
_STORE = ("sample.store_on_cpu", (True,))
REMEDIES = {
    "encode": (("model.text_encoders", ()), ("model.dtype", ("bf16", "fp16"))),
    "sample": (("sample.max_rows", (1,)), ("eval.batch_size", (1,)), _STORE),
    "decode": (("model.decode_batch_size", (1,)), ("model.vae_dtype", ("bf16",)), _STORE),
    "update": (
        *(("train.batch_size", (0,)), ("model.gradient_checkpointing", (True,))),
        *(("sample.batch_size", (1,)), _STORE, ("train.optimizer", ("adamw_8bit",))),
    ),
}


def main(_: list[str]) -> int:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    from tp_grpo.cost.estimate import estimate
    from tp_grpo.settings import Settings

    try:
        settings = Settings.read(CONFIG.value)
        cost = estimate(settings, _WORLD_SIZE.value)
    except (ValueError, OSError) as error:
        return mistake(error)
    warned = warnings(settings, cost, _GPU_MEMORY.value)
    if _JSON.value:
        print(json.dumps(as_json(cost) | {"warnings": warned}, indent=2))
    else:
        parts = _plan(settings, cost), _flops(cost), _network(cost), _memory(cost), warned
        print("\n\n".join("\n".join(lines) for lines in parts if lines))
    return 0


def warnings(settings: Settings, cost: Estimate, gpu_memory: float) -> list[str]:
    """A line for each phase that does not fit, with the fields that would make it smaller."""
    lines = []
    usable = gpu_memory * GB * (1 - SPARE)
    for phase, parts in cost.memory.items():
        if cost.peak(phase) <= usable:
            continue
        now = {name: attrgetter(name)(settings) for name, _ in REMEDIES[phase]}
        left = [f"{n} (now {now[n]!r})" for n, done in REMEDIES[phase] if now[n] not in done]
        change = f"it would shrink with {', '.join(left)}"
        if parts["frozen transformer"] > usable:
            change = "the frozen transformer alone is more than that; use a larger GPU"
        lines.append(
            f"WARNING: {phase} needs {_gb(cost.peak(phase))} GB, more than {_gb(usable)} GB "
            f"({gpu_memory:g} GB less {SPARE:.0%} spare); "
            f"most of it: {max(parts, key=lambda part: parts[part])}; {change}"
        )
    return lines or [f"Every phase fits in {gpu_memory:g} GB with {SPARE:.0%} to spare."]


def as_json(cost: Estimate) -> dict[str, Any]:
    """Bytes, FLOPs, hours; the plan's fields and properties."""
    completion = cost.plan.completion
    plan = {name: getattr(cost.plan, name) for name in ("images", "ladder", "nfe", "micro_batches")}
    plan |= {name: value for name, value in vars(cost.plan).items() if name != "completion"} | {
        "steps": completion.steps,
        "window": list(completion.window),
        "branches": completion.branches,
        "completion": completion.name,
        "completion_steps": completion.evaluations,
        "completion_stride": completion.stride,
        "small": completion.small,
    }
    return {
        "plan": plan,
        "parameters": asdict(cost.counts),
        "flops_per_epoch": asdict(cost.flops) | {"total": cost.flops.total},
        "network_bytes_per_rank": asdict(cost.network),
        "memory_bytes": cost.memory,
        "peak_bytes": {phase: cost.peak(phase) for phase in cost.memory},
        "tflops_per_gpu": _TFLOPS.value,
        "hours_per_100_epochs": cost.hours(100, _TFLOPS.value),
    }


def _plan(settings: Settings, cost: Estimate) -> list[str]:
    counts, rank, model = cost.counts, settings.lora.rank, settings.model
    trained = "the whole transformer"
    if rank:
        trained = f"LoRA of rank {rank} on {counts.adapted_modules} modules"
    rows = [
        ("model", f"{model.path}, {model.dtype}, {_count(counts.transformer)} parameters"),
        ("trained", f"{trained}, {_count(counts.trainable)} parameters"),
        *cost.plan.summary,
    ]
    return ["Plan", *(f"  {name:<10}{text}" for name, text in rows)]


def _flops(cost: Estimate) -> list[str]:
    f = cost.flops
    parts = {"sample": f.sample, "decode": f.decode, "train": f.train, "evaluate": f.evaluate}
    lines = [f"Compute ({_digits(f.forward / 1e12)} TFLOP a model evaluation of an image)"]
    for name, value in parts.items():
        text = " " * 14 + "not counted: prompts.eval cannot be read yet"
        if value is not None:
            text = f"{_digits(value / 1e15):>12} PFLOP an epoch  {value / f.total:6.1%}"
        lines.append(f"  {name:<10}{text}")
    hours, ranks = _digits(cost.hours(100, _TFLOPS.value)), cost.plan.world_size
    source = "" if _TFLOPS.present else " (assumed; give yours as --tflops)"
    return [
        *lines,
        f"  {'all':<10}{_digits(f.total / 1e15):>12} PFLOP an epoch",
        f"  {hours} hours for 100 epochs at {_TFLOPS.value:g} TFLOP/s on each of {ranks} GPUs"
        + source,
        "  Scoring, loading and text encoding come on top.",
    ]


def _network(cost: Estimate) -> list[str]:
    n = cost.network
    if not n.gradients:
        return []
    per_pass = f"{_gb(n.share_per_pass)} a pass, sampling's too"
    rows = [
        ("gradients", n.gradients / MB, "MB an update: mean of the trained part's, fp32"),
        ("results", n.results / MB, "MB an epoch: ladders, scores and ids"),
        ("shares", n.shares / GB, f"GB an update, with FSDP2 alone: frozen weights, {per_pass}"),
    ]
    lines = [f"  {name:<10}{_digits(amount):>12} {text}" for name, amount, text in rows if amount]
    return ["Network: what each GPU sends and receives (MB: 2^20 bytes)", *lines]


def _memory(cost: Estimate) -> list[str]:
    phases = cost.memory.values()
    rows = {"": list(cost.memory)}
    for part in dict.fromkeys(part for phase in phases for part in phase):
        rows[part] = [_gb(phase[part]) if part in phase else "" for phase in phases]
    rows["all"] = [_gb(cost.peak(phase)) for phase in cost.memory]
    return [
        "Memory of each GPU in GB (2^30 bytes; "
        "without scorers, text encoders' activations and kernels' workspaces)",
        *(f"  {name:<20}" + "".join(f"{c:>9}" for c in cells) for name, cells in rows.items()),
    ]


def _gb(size: float) -> str:
    return _digits(size / GB)


def _digits(value: float) -> str:
    """Two decimals, or two digits where that would leave nothing."""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
