"""Options one at a time: what each does to seconds, memory and the ratio of an unmoved policy."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.epoch import GB, PUBLISHED
from gpu_jobs.sizes import bench

SHORT = {"sample__steps": 4, "sample__window_size": 2, "sample__batch_size": 9}
REPEATS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "model.compile = inductor": {"model__compile": "inductor"},
    "model.attention_backend = _native_cudnn": {"model__attention_backend": "_native_cudnn"},
    "model.attention_backend = _native_flash": {"model__attention_backend": "_native_flash"},
    "model.attention_backend = flash": {"model__attention_backend": "flash"},
    "model.vae_dtype = bf16": {"model__vae_dtype": "bf16"},
    "sample.max_rows = 9": {"sample__max_rows": 9},
    "sample.max_rows = 18": {"sample__max_rows": 18},
    "sample.max_rows = 72": {"sample__max_rows": 72},
    "train.batch_size = 18": {"train__batch_size": 18},
    "model.gradient_checkpointing": {"model__gradient_checkpointing": True},
    "train.optimizer = adamw_8bit": {"train__optimizer": "adamw_8bit"},
    "sample.store_on_cpu": {"sample__store_on_cpu": True},
}
NEEDS = {"flash": "flash_attn", "adamw_8bit": "bitsandbytes"}  # an option's value -> its package
CPU = {"eager": "inductor", "_native_math": "_native_cudnn", "native": "_native_flash"}


def cases(tiny: bool) -> list[Case]:
    return [
        Case(name, 90 if "compile" in name else 25, partial(measure, tiny, **fields))
        for name, fields in OPTIONS.items()
        if not any(_missing(value) for value in fields.values())
    ]


def _missing(value: Any) -> bool:
    """Whether this value needs a package that is not installed."""
    package = NEEDS.get(value) if isinstance(value, str) else None
    return package is not None and importlib.util.find_spec(package) is None


def measure(tiny: bool, **fields: Any) -> Figures:
    if tiny:  # a CPU lacks some kernels, and a compiler takes it a minute
        instead = {value: name for name, value in CPU.items()}
        fields = {name: instead.get(value, value) for name, value in fields.items()}
        fields |= {"sample__steps": 2, "sample__window_size": 1}
    made = bench("tp_grpo", PUBLISHED, tiny=tiny, **{**SHORT, **fields})
    figures: Figures = {}
    works = {"rollout": made.roll_out, "decode": made.decode, "update": made.update}
    for name, work in works.items():
        if name == "update":
            figures["ratio_dev"] = made.update(fresh=True)["ratio_dev"]
        work()
        seconds, most = made.measure(work, REPEATS)
        figures |= {f"{name}, s": seconds, f"{name}, GB": most / GB or None}
    return figures


JOB = Job(
    "options",
    "One option at a time: TP-GRPO, SD3.5-Medium, bf16, a batch of 9, four steps of which two are "
    "stochastic. CUDA graphs are not built.",
    cases,
)
