"""What an image costs each method at published sizes: python benchmarks/methods_cost.py

TFLOP an image from `scripts/estimate.py`'s counts, evaluations and scoring apart. The real classes
run on the meta device, so that no weights are needed. Prints Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import marked_run
from methods import METHODS

from tp_grpo.cost.estimate import Flops, estimate
from tp_grpo.plan import Plan
from tp_grpo.settings import Settings

RECIPES = {"pickscore_sd3": "SD3.5-Medium", "pickscore_flux": "FLUX.1-dev"}
WORLD = 32


def cost(name: str, recipe: str) -> tuple[Plan, Flops]:
    """An epoch's plan and FLOPs."""
    method = METHODS[name]
    # What the embedded model's clip ranges and pulls are does not change the counts.
    config = marked_run.config_of(method.algorithm, recipe, method.fields)
    result = estimate(Settings.read(config), WORLD)
    return result.plan, result.flops


def table(recipe: str) -> str:
    head = ["method", "evaluations an image", "trained rows", "scored", "sampling, TFLOP"]
    head += ["decoding", "updates", "in all", "Flow-GRPO's is"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    baseline = 0.0
    for name in METHODS:
        plan, flops = cost(name, recipe)
        parts = [x / plan.images / 1e12 for x in (flops.sample, flops.decode, flops.train)]
        total = sum(parts)
        baseline = baseline or total
        work = [
            plan.epoch_nfe / plan.images,
            plan.columns / plan.members,
            plan.epoch_images / plan.images,
        ]
        cells = [name, *(f"{x:.3g}" for x in work), *(f"{x:.1f}" for x in (*parts, total))]
        lines.append(f"| {' | '.join(cells)} | {baseline / total:.2f} x |")
    return "\n".join(lines)


def main() -> None:
    for recipe, model in RECIPES.items():
        print(f"{model}, `{recipe}`:\n\n{table(recipe)}\n")


if __name__ == "__main__":
    main()
