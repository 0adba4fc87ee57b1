"""Options one at a time: what each does to seconds, memory and the ratio of an unmoved policy."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any, NamedTuple

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.epoch import GIB, PUBLISHED
from gpu_jobs.sizes import bench

SHORT = {"sample__steps": 4, "sample__window_size": 2}
FLUX = "pickscore_flux_80gb"  # SD3's attention kernel cannot be exchanged


class Option(NamedTuple):
    """fields: by dotted name, with __ for the dot. phases: those that it can change."""

    fields: dict[str, Any]
    recipe: str = PUBLISHED
    seconds: float = 25
    repeats: int = 3
    phases: tuple[str, ...] = ("rollout", "decode", "update")


def _rows(most: int) -> Option:
    """The published steps, whose branches fill such calls."""
    fields = {"sample__steps": 10, "sample__window_size": 9, "sample__max_rows": most}
    return Option(fields, seconds=40, repeats=1, phases=("rollout",))


OPTIONS = {
    "as the recipe": Option({}),
    "model.vae_dtype = bf16": Option({"model__vae_dtype": "bf16"}),
    "model.gradient_checkpointing": Option({"model__gradient_checkpointing": True}),
    "train.optimizer = adamw_8bit": Option({"train__optimizer": "adamw_8bit"}),
    "sample.store_on_cpu": Option({"sample__store_on_cpu": True}),
    "sample.batch_size = 4": Option({"sample__batch_size": 4}),
    "the same, train.batch_size = 8": Option({"sample__batch_size": 4, "train__batch_size": 8}),
    "published steps, sample.max_rows = 9": _rows(9),
    "published steps, sample.max_rows = 36": _rows(36),
    "published steps, sample.max_rows = 72": _rows(72),
    "FLUX.1-dev": Option({}, FLUX, 40),
    **{
        f"FLUX.1-dev, model.attention_backend = {kernel}": Option(
            {"model__attention_backend": kernel}, FLUX, 40
        )
        for kernel in ("_native_cudnn", "_native_flash", "flash")
    },
    "model.compile = inductor": Option({"model__compile": "inductor"}, seconds=180),
}
NEEDS = {"flash": "flash_attn", "adamw_8bit": "bitsandbytes"}  # an option's value -> its package
ON_CPU = {"inductor": "eager", "_native_cudnn": "_native_math", "_native_flash": "native"}


def cases(tiny: bool) -> list[Case]:
    return [
        Case(name, option.seconds, partial(measure, tiny, option))
        for name, option in OPTIONS.items()
        if not any(_missing(value) for value in option.fields.values())
    ]


def _missing(value: Any) -> bool:
    """Whether this value needs a package that is not installed."""
    package = NEEDS.get(value) if isinstance(value, str) else None
    return package is not None and importlib.util.find_spec(package) is None


def measure(tiny: bool, option: Option) -> Figures:
    fields = SHORT | option.fields
    if tiny:  # a CPU lacks some kernels, and compiling takes it a minute
        fields = {name: ON_CPU.get(value, value) for name, value in fields.items()}
        fields |= {"sample__steps": 2, "sample__window_size": 1}
        if "train__batch_size" in fields:
            fields |= {"sample__batch_size": 2, "train__batch_size": 2}
    batch = bench("tp_grpo", option.recipe, tiny=tiny, **fields)
    figures: Figures = {}
    works = {"rollout": batch.roll_out, "decode": batch.decode, "update": batch.update}
    for name in option.phases:
        if name == "update":
            figures["ratio_dev"] = batch.update(fresh=True)["ratio_dev"]
        works[name]()
        seconds, peak = batch.measure(works[name], option.repeats)
        figures |= {f"{name}, s": seconds, f"{name}, GiB": peak / GIB or None}
    return figures


JOB = Job(
    "options",
    "One option at a time: TP-GRPO, SD3.5-Medium where nothing else is said, bf16, four steps of "
    "which two are stochastic. CUDA graphs are not built.",
    cases,
)
