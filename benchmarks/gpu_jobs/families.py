"""FLUX.1-dev and FLUX.2-klein: the ratio, and what a batch takes."""

from __future__ import annotations

from functools import partial

from gpu_jobs import epoch, ratio
from gpu_jobs.case import Case, Job

RECIPES = {"FLUX.1-dev": "pickscore_flux_80gb", "FLUX.2-klein": "pickscore_klein_80gb"}


def cases(tiny: bool) -> list[Case]:
    return [
        Case(f"{model}, {name}", seconds, measure)
        for model, recipe in RECIPES.items()
        for name, seconds, measure in [
            ("ratio", 30, partial(ratio.deviations, recipe, tiny)),
            ("Flow-GRPO", 45, partial(epoch.measure, "flow_grpo", recipe, tiny, True)),
            ("TP-GRPO", 45, partial(epoch.measure, "tp_grpo", recipe, tiny, False)),
            ("shared states", 40, partial(epoch.measure, "shared_state", recipe, tiny, True)),
        ]
    ]


JOB = Job("families", "FLUX.1-dev and FLUX.2-klein with random weights, 512 x 512, bf16.", cases)
