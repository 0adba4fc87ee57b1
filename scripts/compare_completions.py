"""What cheaper completions do to the increments, on a real model: the same trajectories, completed in every way.

    python scripts/compare_completions.py --config=config/tp_grpo.py:shapes_tiny --config.sample.steps=10 \\
        --config.sample.window_size=9 [--checkpoint=runs/quickstart] [--groups=6 --batches=6 --repeats=3]

Every row is compared with `euler` on the same prompts and noise: correlation of the increments (over all, and of the
step where it is least), share of the increments that are not 0 whose sign it keeps, turning points found
(intersection over union, unbalanced). ± is the standard deviation over the batches, each of `--groups` prompts.
Seconds are those of a batch, sampling, decoding and scoring together: median, and the range over the repeats.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from _config import CONFIG, parse, quiet
from absl import app, flags

if TYPE_CHECKING:
    from tp_grpo.settings import Settings

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a run, one of its checkpoints, or an exported policy; none: base"
)
_GROUPS = flags.DEFINE_integer("groups", 6, "prompts a batch", lower_bound=1)
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
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(ladders, seconds, plans))
    return 0


def measure(
    config: Settings,
) -> tuple[dict[str, list[Any]], dict[str, list[float]], dict[str, Any]]:
    """By variant: the ladders (B, J) of each batch, all its timings, its plan. The variants take turns."""
    import torch

    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.models.conditions import conditions_of, encode_once
    from tp_grpo.plan import make_plan
    from tp_grpo.ranks.runtime import Runtime
    from tp_grpo.rewards.reward_set import RewardSet
    from tp_grpo.train.rollout import roll_out

    policy = policy_on_base.find(_CHECKPOINT.value) if _CHECKPOINT.value else None
    plan = make_plan(config, 1, branches=True)
    known = prompts.load(config.prompts.train, field="prompts.train")
    rewards = RewardSet(config.rewards.scorers)
    backbone = policy_on_base.PolicyOnBase(
        config.model, Runtime(config.model.dtype, (), config.output_dir), policy
    ).backbone
    plan = plan.at(backbone.sigmas(plan.steps).tolist())
    plans = {
        name: replace(plan, completion=replace(plan.completion, **fields))
        for name, fields in VARIANTS.items()
    }
    ladders: dict[str, list[torch.Tensor]] = {name: [] for name in plans}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(_BATCHES.value):
        groups = prompts.epoch_groups(
            len(known), seed=config.seed, epoch=number, groups=_GROUPS.value
        )
        members = range(plan.group_size)
        batch = known.batch(
            [g for g in groups for _ in members], [m for _ in groups for m in members]
        )
        cond = conditions_of(encode_once(backbone, batch.prompts), batch.prompts, backbone.device)
        for repeat in range(_REPEATS.value):
            for name, own in plans.items():
                start = time.perf_counter()
                key = (config.seed, number)
                options: Any = {
                    "plan": own,
                    "sample": config.sample,
                    "key": key,
                    "keep_images": False,
                }
                scored = roll_out(backbone, rewards, batch, cond, **options).finish()
                seconds[name].append(time.perf_counter() - start)
                if repeat == 0:
                    ladders[name].append(scored.total.double())
    rewards.close()
    return ladders, seconds, plans


def table(
    ladders: dict[str, list[Any]], seconds: dict[str, list[float]], plans: dict[str, Any]
) -> str:
    from tp_grpo.method import credit

    exact = [credit.turning_point(R, balance=False) for R in ladders["`euler`"]]
    lines = [
        "| completion | evaluations | seconds | correlation | least, at a step | sign kept | turning points, IoU |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, plan in plans.items():
        own = [credit.turning_point(R, balance=False) for R in ladders[name]]
        pairs = list(zip(exact, own, strict=True))
        least = [
            min(correlation(a.increment[:, k], b.increment[:, k]) for k in columns(a))
            for a, b in pairs
        ]
        cells = [
            name,
            str(plan.nfe),
            f"{statistics.median(seconds[name]):.2f} ({low_high(seconds[name])})",
        ]
        cells.append(spread([correlation(a.increment, b.increment) for a, b in pairs]))
        cells.append(spread(least))
        cells.append(spread([signs_kept(a.increment, b.increment) for a, b in pairs]))
        cells.append(spread([overlap(a.turning, b.turning) for a, b in pairs]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def columns(found: Any) -> list[int]:
    """The steps at which the increments differ at all."""
    return [k for k, spread in enumerate(found.increment.std(0).tolist()) if spread > 0]


def correlation(a: Any, b: Any) -> float:
    """Pearson's, of all entries; NaN where one of them does not vary."""
    import torch

    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def signs_kept(a: Any, b: Any) -> float:
    """Share of the entries of `a` that are not 0 whose sign `b` has."""
    return float((a.sign() == b.sign())[a != 0].double().mean())


def overlap(a: Any, b: Any) -> float:
    return float((a & b).sum() / (a | b).sum())


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def low_high(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
