"""The table of docs/recipes.md: what each recipe takes, by estimate. python benchmarks/memory.py

Nothing loads; a minute or two for each large model. It assumes 400 TFLOP/s on every GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import recipes
from config.models import MEMORY, MODELS
from tp_grpo.cost.estimate import estimate
from tp_grpo.settings import Settings

TFLOPS, EPOCHS, GPUS = 400, 100, 32


def main() -> None:
    print("| recipe | GPUs | peak, GB | in | PFLOP per epoch | hours |")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        for memory in ("", *MEMORY[model]):
            recipe = "_".join(filter(None, ("pickscore", model, memory)))
            print(row(recipe, 1 if memory else GPUS), flush=True)


def row(recipe: str, gpus: int) -> str:
    """Of the table, for one of `recipes.RECIPES`."""
    counted = estimate(Settings.read(recipes.build("tp_grpo", "turning_point", recipe)), gpus)
    phase = max(counted.memory, key=counted.peak)
    peak, flops = counted.peak(phase) / 2**30, counted.flops.total / 1e15
    hours = counted.hours(EPOCHS, TFLOPS)
    return f"| `{recipe}` | {gpus} | {peak:.1f} | {phase} | {flops:.0f} | {hours:.1f} |"


if __name__ == "__main__":
    main()
