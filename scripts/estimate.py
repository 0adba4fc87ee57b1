"""What a run will take, before anything loads: images, FLOPs, memory by phase, hours.

python scripts/estimate.py --config=config/tp_grpo.py:pickscore_flux --world-size 32 --gpu-memory 80 --tflops 400
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from _config import CONFIG, parse
from absl import app, flags

if TYPE_CHECKING:
    from tp_grpo.cost.estimate import Estimate
    from tp_grpo.settings import Settings

_WORLD_SIZE = flags.DEFINE_integer("world-size", 1, "GPUs", lower_bound=1)
_GPU_MEMORY = flags.DEFINE_float(
    "gpu-memory", 80.0, "of each GPU, in GB (2^30 bytes)", lower_bound=0.0
)
_TFLOPS = flags.DEFINE_float(
    "tflops", 200.0, "10^12 FLOP/s that each GPU sustains", lower_bound=1e-9
)
_JSON = flags.DEFINE_boolean("json", False, "print JSON instead of text")

MB, GB = 2**20, 2**30
SPARE = 0.1  # of the GPU, for fragments, kernels' workspaces and the CUDA context
REMEDIES = {
    "encode": (("model.text_encoders", ()), ("model.dtype", ("bf16", "fp16"))),
    "sample": (
        ("sample.max_rows", (1,)),
        ("eval.batch_size", (1,)),
        ("sample.store_on_cpu", (True,)),
    ),
    "decode": (
        ("model.decode_batch_size", (1,)),
        ("model.vae_dtype", ("bf16",)),
        ("sample.store_on_cpu", (True,)),
    ),
    "update": (
        ("train.batch_size", (0,)),
        ("model.gradient_checkpointing", (True,)),
        ("sample.batch_size", (1,)),
        ("sample.store_on_cpu", (True,)),
        ("train.optimizer", ("adamw_8bit",)),
    ),
}


def main(_: list[str]) -> int:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    from tp_grpo.cost.estimate import estimate
    from tp_grpo.settings import Settings

    try:
        settings = Settings.read(CONFIG.value)
        found = estimate(settings, _WORLD_SIZE.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    said = warnings(settings, found, _GPU_MEMORY.value)
    if _JSON.value:
        print(json.dumps(as_json(found) | {"warnings": said}, indent=2))
    else:
        parts = [
            _plan(settings, found),
            _flops(found),
            _network(found),
            _memory(found),
            "\n".join(said),
        ]
        print("\n\n".join(part for part in parts if part).rstrip())
    return 0


def warnings(config: Settings, found: Estimate, gpu_memory: float) -> list[str]:
    """A line for each phase that does not fit, with the fields that would make it smaller."""
    lines = []
    usable = gpu_memory * GB * (1 - SPARE)
    for phase in found.memory:
        if found.peak(phase) <= usable:
            continue
        largest = max(found.memory[phase], key=lambda part: found.memory[phase][part])
        fields = [name for name, done in REMEDIES[phase] if _get(config, name) not in done]
        change = f"it would shrink with {', '.join(f'{name} (now {_get(config, name)!r})' for name in fields)}"
        if found.memory[phase]["frozen transformer"] > usable:
            change = "the frozen transformer alone is more than that; use a larger GPU"
        lines.append(
            f"WARNING: {phase} needs {_digits(found.peak(phase) / GB)} GB, more than {_digits(usable / GB)} GB "
            f"({gpu_memory:g} GB less {SPARE:.0%} spare); most of it: {largest}; {change}"
        )
    return lines or [f"Every phase fits in {gpu_memory:g} GB with {SPARE:.0%} to spare."]


def as_json(found: Estimate) -> dict[str, Any]:
    """Bytes, FLOPs, hours; the properties of the plan beside its fields."""
    plan = {
        name: getattr(found.plan, name) for name in ("images", "ladder", "nfe", "micro_batches")
    }
    completion = found.plan.completion
    plan |= {name: value for name, value in vars(found.plan).items() if name != "completion"} | {
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
        "parameters": asdict(found.counts),
        "flops_per_epoch": asdict(found.flops) | {"total": found.flops.total},
        "network_bytes_per_rank": asdict(found.network),
        "memory_bytes": found.memory,
        "peak_bytes": {phase: found.peak(phase) for phase in found.memory},
        "tflops_per_gpu": _TFLOPS.value,
        "hours_per_100_epochs": found.hours(100, _TFLOPS.value),
    }


def _plan(config: Settings, found: Estimate) -> str:
    counts, rank = found.counts, config.lora.rank
    how = (
        f"LoRA of rank {rank} on {counts.adapted_modules} modules"
        if rank
        else "the whole transformer"
    )
    rows = [
        (
            "model",
            f"{config.model.path}, {config.model.dtype}, {_count(counts.transformer)} parameters",
        ),
        ("trained", f"{how}, {_count(counts.trainable)} parameters"),
        *found.plan.summary,
    ]
    return "\n".join(["Plan", *(f"  {name:<10}{text}" for name, text in rows)])


def _flops(found: Estimate) -> str:
    f = found.flops
    parts = {"sample": f.sample, "decode": f.decode, "train": f.train, "evaluate": f.evaluate}
    lines = [f"Compute ({_digits(f.forward / 1e12)} TFLOP a model evaluation of an image)"]
    for name, value in parts.items():
        share = (
            "not counted: prompts.eval cannot be read yet"
            if value is None
            else f"{value / f.total:6.1%}"
        )
        amount = (
            f"{_digits((value or 0) / 1e15):>12} PFLOP an epoch" if value is not None else " " * 12
        )
        lines.append(f"  {name:<10}{amount}  {share}")
    hours, source = (
        found.hours(100, _TFLOPS.value),
        "" if _TFLOPS.present else " (assumed; give yours as --tflops)",
    )
    lines.append(f"  {'all':<10}{_digits(f.total / 1e15):>12} PFLOP an epoch")
    ranks = found.plan.world_size
    lines.append(
        f"  {_digits(hours)} hours for 100 epochs at {_TFLOPS.value:g} TFLOP/s on each of {ranks} GPUs{source}"
    )
    lines.append("  Scoring, loading and text encoding come on top.")
    return "\n".join(lines)


def _network(found: Estimate) -> str:
    n = found.network
    if not n.gradients:
        return ""
    lines = ["Network: what each GPU sends and receives (MB: 2^20 bytes)"]
    lines.append(
        f"  {'gradients':<10}{_digits(n.gradients / MB):>12} MB an update: mean of the trained part's, fp32"
    )
    lines.append(
        f"  {'results':<10}{_digits(n.results / MB):>12} MB an epoch: ladders, scores and ids"
    )
    if n.shares:
        each = f"{_digits(n.share_per_pass / GB)} a pass, sampling's too"
        lines.append(
            f"  {'shares':<10}{_digits(n.shares / GB):>12} GB an update, with FSDP2 alone: frozen weights, {each}"
        )
    return "\n".join(lines)


def _memory(found: Estimate) -> str:
    parts = list(dict.fromkeys(part for phase in found.memory.values() for part in phase))
    lines = [
        "Memory of each GPU in GB (2^30 bytes; without scorers, text encoders' activations and kernels' workspaces)"
    ]
    lines.append(f"  {'':<20}" + "".join(f"{phase:>9}" for phase in found.memory))
    for part in parts:
        held = (phase.get(part) for phase in found.memory.values())
        lines.append(
            f"  {part:<20}" + "".join(f"{'' if h is None else _digits(h / GB):>9}" for h in held)
        )
    lines.append(
        f"  {'all':<20}"
        + "".join(f"{_digits(found.peak(phase) / GB):>9}" for phase in found.memory)
    )
    return "\n".join(lines)


def _digits(value: float) -> str:
    """Two decimals, or two digits where that would leave nothing."""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _get(config: Settings, name: str) -> Any:
    return attrgetter(name)(config)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
