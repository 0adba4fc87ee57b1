"""FLUX.1-dev and FLUX.2-klein: the ratio, and what a batch takes."""

from __future__ import annotations

from functools import partial

from gpu_jobs import epoch, ratio
from gpu_jobs.case import Case, Job
from gpu_jobs.epoch import Method

RECIPES = {"FLUX.1-dev": "pickscore_flux_80gb", "FLUX.2-klein": "pickscore_klein_80gb"}
METHODS = {
    "Flow-GRPO": Method("flow_grpo", 45),
    "TP-GRPO": Method("tp_grpo", 45, False),
    "shared states": Method("shared_state", 40),
}


def cases(tiny: bool) -> list[Case]:
    batches = [
        Case(f"{model}, {name}", method.seconds, partial(epoch.measure, method, recipe, tiny))
        for model, recipe in RECIPES.items()
        for name, method in METHODS.items()
    ]
    klein = partial(ratio.deviations, RECIPES["FLUX.2-klein"], tiny)
    return [*batches, Case("FLUX.2-klein, ratio", 20, klein)]


JOB = Job("families", "FLUX.1-dev and FLUX.2-klein with random weights, 512 x 512, bf16.", cases)
