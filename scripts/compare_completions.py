"""How cheaper completions change the increments: the same trajectories, completed in every way.

    python scripts/compare_completions.py --config=config/tp_grpo.py:shapes_tiny \\
        --config.sample.steps=10 --config.sample.window_size=9 \\
        [--checkpoint=runs/quickstart] [--groups=6 --batches=6 --repeats=3]

Each row is compared with `euler` on the same prompts and noise: correlation of the increments (of
all, and at the step where it is lowest), share of the non-zero increments whose sign it keeps,
turning points (intersection over union, unbalanced). ± is the standard deviation over the batches
of `--groups` prompts. Seconds are a batch's, to sample, decode and score: median and range over the
repeats.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from _config import CONFIG, mistake, parse, quiet
from absl import app, flags

if TYPE_CHECKING:
    from torch import Tensor

    from tp_grpo.plan import Plan
    from tp_grpo.settings import Settings

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a run, one of its checkpoints, or an exported policy; none: base"
)
_GROUPS = flags.DEFINE_integer("groups", 6, "prompts per batch", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 6, "batches, of other prompts and noise", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 3, "timings of each batch", lower_bound=1)

VARIANTS: dict[str, dict[str, Any]] = {
    "`euler`": {"name": "euler"},
    "`reuse`": {"name": "reuse"},
    "`multistep`, 4": {"name": "multistep", "evaluations": 4},
    "`multistep`, 3": {"name": "multistep", "evaluations": 3},
    "`strided`, 2": {"name": "strided", "stride": 2},
    "`tweedie`": {"name": "tweedie"},
}


def main(_: list[str]) -> int:
    from tp_grpo.settings import Settings

    quiet()
    try:
        ladders, seconds, plans = measure(Settings.read(CONFIG.value))
    except (ValueError, OSError) as error:
        return mistake(error)
    print(table(ladders, seconds, plans))
    return 0


def measure(
    config: Settings,
) -> tuple[dict[str, list[Tensor]], dict[str, list[float]], dict[str, Plan]]:
    """By variant: each batch's ladders (B, J), all timings, the plan. The variants take turns."""
    from reward_models import compares_groups
    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.models.conditions import conditions_of, encode_once
    from tp_grpo.plan import make_plan
    from tp_grpo.ranks.runtime import Runtime
    from tp_grpo.rewards.reward_set import RewardSet
    from tp_grpo.train.rollout import roll_out

    policy = policy_on_base.find(_CHECKPOINT.value)
    plan = make_plan(config, 1, branches=True)
    known = prompts.load(config.prompts.train, field="prompts.train")
    for name in compares_groups(config.rewards.scorers):
        raise ValueError(
            f"rewards.scorers.{name} compares the images of a prompt; this script scores each "
            "image by itself"
        )
    rewards = RewardSet(config.rewards.scorers)
    runtime = Runtime(config.model.dtype, (), config.output_dir)
    backbone = policy_on_base.PolicyOnBase(config.model, runtime, policy).backbone
    plan = plan.at(backbone.sigmas(plan.steps).tolist())
    plans = {
        name: replace(plan, completion=replace(plan.completion, **fields))
        for name, fields in VARIANTS.items()
    }
    ladders: dict[str, list[Tensor]] = {name: [] for name in plans}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for epoch in range(_BATCHES.value):
        groups = prompts.epoch_groups(
            len(known), seed=config.seed, epoch=epoch, groups=_GROUPS.value
        )
        chosen = [(group, member) for group in groups for member in range(plan.group_size)]
        batch = known.batch(*zip(*chosen, strict=True))
        cond = conditions_of(encode_once(backbone, batch.prompts), batch.prompts, backbone.device)
        options: Any = {"config": config, "key": (config.seed, epoch), "keep_images": False}
        for repeat in range(_REPEATS.value):
            for name, variant in plans.items():
                start = time.perf_counter()
                pending = roll_out(backbone, rewards, batch, cond, plan=variant, **options)
                scored = pending.finish()
                seconds[name].append(time.perf_counter() - start)
                if repeat == 0:
                    ladders[name].append(scored.total.double())
    rewards.close()
    return ladders, seconds, plans


def table(
    ladders: dict[str, list[Tensor]], seconds: dict[str, list[float]], plans: dict[str, Plan]
) -> str:
    """Markdown, a row for each variant."""
    from tp_grpo.method import credit

    credits = {
        name: [credit.turning_point(R, balance=False) for R in batches]
        for name, batches in ladders.items()
    }
    head = "completion | evaluations | seconds | correlation | least, at a step | sign kept"
    lines = [f"| {head} | turning points, IoU |", "|---|---|---|---|---|---|---|"]
    for name, plan in plans.items():
        times = seconds[name]
        pairs = list(zip(credits["`euler`"], credits[name], strict=True))
        increments = [(exact.increment, other.increment) for exact, other in pairs]
        cells = [
            name,
            str(plan.nfe),
            f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})",
            spread([correlation(a, b) for a, b in increments]),
            spread([least_correlation(a, b) for a, b in increments]),
            spread([signs_kept(a, b) for a, b in increments]),
            spread([overlap(exact.turning, other.turning) for exact, other in pairs]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of all entries; NaN where one of them does not vary."""
    import torch

    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def least_correlation(a: Tensor, b: Tensor) -> float:
    """The lowest of a step (column) at which `a` and `b` vary; NaN where none does."""
    steps = [correlation(a[:, k], b[:, k]) for k in range(a.shape[1])]
    return min((value for value in steps if not math.isnan(value)), default=math.nan)


def signs_kept(a: Tensor, b: Tensor) -> float:
    """Share of the non-zero entries of `a` whose sign `b` has."""
    return float((a.sign() == b.sign())[a != 0].double().mean())


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def spread(values: list[float]) -> str:
    """Mean and standard deviation of what is known; "unknown" for what too few values give."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "unknown"
    deviation = f"{statistics.stdev(known):.3f}" if len(known) > 1 else "unknown"
    return f"{statistics.mean(known):.3f} ± {deviation}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
