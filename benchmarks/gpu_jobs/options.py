"""Options one at a time: what each does to seconds, memory and the ratio of an unmoved policy."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.epoch import GIB, PUBLISHED
from gpu_jobs.sizes import bench

GPU = Path(__file__).resolve().parents[1] / "gpu.py"
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
    cases = []
    for name, option in OPTIONS.items():
        values = [value for value in option.fields.values() if isinstance(value, str)]
        packages = {NEEDS[value] for value in values if value in NEEDS}
        if all(map(PathFinder.find_spec, packages)):
            apart = "bitsandbytes" in packages or "model__compile" in option.fields
            work = partial(measure_apart, tiny, name) if apart else partial(measure, tiny, option)
            cases.append(Case(name, option.seconds, work))
    return cases


def measure_apart(tiny: bool, name: str) -> Figures:
    """`measure` in a process that is not forked, for libraries that fork badly."""
    command = [sys.executable, str(GPU), "--option", name, *(["--tiny"] if tiny else [])]
    figures: Figures = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return figures


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
