"""Two ranks that share one GPU, by gloo: the same run as one."""

from __future__ import annotations

from functools import partial

from gpu_jobs import runs
from gpu_jobs.case import Case, Figures, Job


def cases(tiny: bool) -> list[Case]:
    methods = {"TP-GRPO": "tp_grpo", "Flow-GRPO": "flow_grpo", "shared states": "shared_state"}
    cases = [Case(name, 40, partial(compare, algorithm)) for name, algorithm in methods.items()]
    return cases[:1] if tiny else cases


def compare(algorithm: str) -> Figures:
    """`shapes_smoke`, whose fp32 products may depend on the batch on a GPU."""
    fields = {"train__max_ratio_dev": float("inf"), "sample__batch_size": 1}
    one, two = (runs.Start(algorithm, ranks=ranks, **fields).finish() for ranks in (1, 2))
    apart = (one.ladder() - two.ladder()).abs()
    norms = [run.epochs[0]["grad_norm"] for run in (one, two)]
    return {
        "rewards that differ": (apart > 0).double().mean().item(),
        "largest difference": apart.max().item(),
        "grad_norm of one": norms[0],
        "of two": norms[1],
        "relative difference": abs(norms[1] / norms[0] - 1),
        "s of one": one.seconds,
        "s of two": two.seconds,
    }


JOB = Job(
    "two_processes", "Two ranks on one GPU (gloo) against one: `shapes_smoke`, first epoch.", cases
)
