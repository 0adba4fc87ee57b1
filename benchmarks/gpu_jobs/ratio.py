"""Whether training computes what sampling computed: the ratio of a policy that has not moved."""

from __future__ import annotations

from functools import partial

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.sizes import bench, dtypes

CLIP = 1e-5  # the published clip range
BATCHES = (9, 1)
# A batch of 9 stores more than 80 GB of FLUX's activations, which nothing reads here.
FLUX = {"model__gradient_checkpointing": True}


def cases(tiny: bool) -> list[Case]:
    sd3 = [
        Case(
            f"SD3.5-Medium, {dtype}, guidance {scale:g}, batch {batch}",
            20 if batch > 1 else 8,
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
        for batch in BATCHES
    ]
    flux = [
        Case(
            f"FLUX.1-dev, bf16, batch {batch}",
            30 if batch > 1 else 20,
            partial(deviations, "pickscore_flux", tiny, sample__batch_size=batch, **FLUX),
        )
        for batch in BATCHES
    ]
    return sd3 + flux


def deviations(recipe: str, tiny: bool, **fields: object) -> Figures:
    """The largest |ratio - 1| of a Flow-GRPO rollout, and the share beyond the clip range."""
    batch = bench("flow_grpo", recipe, tiny=tiny, **fields)
    batch.roll_out()
    apart = batch.deviations()
    return {
        "ratios": apart.numel(),
        "ratio_dev": apart.max().item(),
        f"share beyond {CLIP:g}": (~(apart <= CLIP)).double().mean().item(),  # NaN is beyond
    }


JOB = Job("ratio", "The ratio of an unmoved policy, with random weights; 0 is the goal.", cases)
