"""Held-out score at equal seconds: the embedded recipe of three methods on this device."""

from __future__ import annotations

import tempfile
import time
from functools import partial

from gpu_jobs.case import Case, Figures, Job
from gpu_jobs.runs import config_of
from tp_grpo.trainer import Trainer

SECONDS = 60  # of training, evaluations apart
METHODS = {
    "Flow-GRPO": "flow_grpo",
    "TP-GRPO, matching": "tp_grpo",
    "shared states": "shared_state",
}
SMOKE = {"sample__steps": 4, "sample__window_size": 2, "eval__prompts": 8, "eval__members": 1}


def cases(tiny: bool) -> list[Case]:
    seconds = 1 if tiny else SECONDS
    return [
        Case(name, SECONDS + 40, partial(learn, algorithm, seconds, tiny))
        for name, algorithm in METHODS.items()
    ]


def learn(algorithm: str, seconds: float, tiny: bool) -> Figures:
    """Train for `seconds`; `exact` is the share of images that are right in every detail."""
    recipe, fields = ("shapes_smoke", SMOKE) if tiny else ("shapes_tiny", {})
    config = config_of(algorithm, recipe, output_dir=tempfile.mkdtemp(), **fields)
    config.epochs = 10**6
    config.eval.every = config.tracking.images_every = config.checkpoint.keep_every = 10**6
    run = Trainer(config)
    with run.learner.policy.reference():
        before = run._evaluate(0)
    spent, epoch = 0.0, 0
    while spent < seconds:
        begun = time.perf_counter()
        run._epoch(epoch)
        spent, epoch = spent + time.perf_counter() - begun, epoch + 1
    after = run._evaluate(epoch)
    return {
        "epochs": epoch,
        "updates": run.learner.updates,
        "s": spent,
        "exact before": before["shapes/exact"],
        "exact after": after["shapes/exact"],
        "s.e.": after["shapes/exact_se"],
    }


JOB = Job(
    "learning", f"`shapes_tiny` for {SECONDS} s of training: held-out `exact`, seed 42.", cases
)
