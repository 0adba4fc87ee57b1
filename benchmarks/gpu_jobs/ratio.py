"""Whether training computes what sampling computed: the ratio of a policy that has not moved."""

from __future__ import annotations

from functools import partial

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.sizes import bench, dtypes

CLIP = 1e-5  # the published clip range


def cases(tiny: bool) -> list[Case]:
    return [
        Case(
            f"{dtype}, guidance {scale:g}, batch {batch}",
            8 if batch == 1 else 20,
            partial(
                deviations,
                "pickscore_sd3",
                tiny,
                model__dtype=dtype,
                sample__batch_size=batch,
                sample__guidance_scale=scale,
            ),
        )
        for dtype in dtypes(tiny=tiny)
        for scale in (4.5, 1.0)
        for batch in (9, 1)
    ]


def deviations(recipe: str, tiny: bool, **fields: object) -> Figures:
    """The largest |ratio - 1| of a Flow-GRPO rollout, and the share beyond the clip range."""
    made = bench("flow_grpo", recipe, tiny=tiny, **fields)
    made.roll_out()
    apart = made.deviations()
    return {
        "ratios": apart.numel(),
        "ratio_dev": apart.max().item(),
        f"share beyond {CLIP:g}": (apart > CLIP).double().mean().item(),
    }


JOB = Job(
    "ratio",
    "The ratio of an unmoved policy, SD3.5-Medium with random weights; 0 is the goal.",
    cases,
)
