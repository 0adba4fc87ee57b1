"""The device, and whether the embedded recipes train on it as they do on a CPU."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial

import accelerate
import diffusers
import torch
import transformers

from gpu_jobs import runs
from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.sizes import on_gpu
from tp_grpo.cost.probe import matmul_peak

AGREED = 1e-3  # of a reward
DTYPES = ("fp32", "bf16")


def cases(tiny: bool) -> list[Case]:
    trained = [
        Case(f"{algorithm}, {dtype}", 30, partial(train, algorithm, dtype))
        for algorithm in ("tp_grpo", "flow_grpo")
        for dtype in (DTYPES[:1] if tiny else DTYPES)
    ]
    return [Case("device", 10, partial(device, 2**26 if tiny else 2**30)), *trained]


def device(size: int) -> Figures:
    """size: bytes of the copies."""
    gpu = on_gpu()
    where = torch.device("cuda" if gpu else "cpu")
    memory = torch.cuda.mem_get_info()[1] / 2**30 if gpu else None
    source = torch.empty(size, dtype=torch.uint8, device=where)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=gpu)
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or "CPU",
        "memory, GiB": memory,
        "driver": _driver(),
        "CPU cores": os.cpu_count(),
        "CUDA": torch.version.cuda if gpu else None,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "matmul bf16, TFLOP/s": matmul_peak(where, torch.bfloat16) / 1e12,
        "matmul fp32, TFLOP/s": matmul_peak(where, torch.float32) / 1e12,
        "copy, GB/s": 2 * size / _seconds(source.clone) / 1e9,  # read and written
        "from the host, GB/s": size / _seconds(lambda: source.copy_(host)) / 1e9,
    }


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else None


def _seconds(work: Callable[[], object]) -> float:
    """The least of five calls."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def train(algorithm: str, dtype: str) -> Figures:
    """`shapes_smoke` here and, in fp32, on the CPU."""
    # fp32 products on a GPU depend on the batch: the ratio is reported here, not a reason to stop.
    fields = {"model__dtype": dtype, "train__max_ratio_dev": float("inf")}
    on_cpu = runs.Start(algorithm, environment=runs.CPU, model__dtype="fp32")
    here = runs.Start(algorithm, environment=runs.FULL_FP32, **fields).finish()
    apart = (here.ladder() - on_cpu.finish().ladder()).abs()
    line = here.epochs[0]
    values = [line[name] for name in ("reward", "loss", "grad_norm")]
    return {
        "finite": "yes" if all(map(math.isfinite, values)) and not line["skipped"] else "no",
        "ratio_dev": line["ratio_dev"],
        "grad_norm": line["grad_norm"],
        "rewards as on the CPU": (apart <= AGREED).double().mean().item(),
        "mean difference": apart.mean().item(),
    }


JOB = Job(
    "health",
    f"The device, and an epoch of `shapes_smoke` without TF32: the share of the ladders' rewards "
    f"that are within {AGREED:g} of a CPU's in fp32.",
    cases,
)
