"""TP-GRPO (arXiv 2602.06422): increments as step rewards, long-term gain at the turning points.

--config=config/tp_grpo.py:RECIPE; `--config.credit.name=incremental` gives increments alone.

The large models' recipes are the paper's method. So is `paper`, for the embedded model;
`shapes_tiny` is a form of it that learns faster there: the paper's credit, given to clean images.
"""

from ml_collections import ConfigDict

from config import recipes

PAPER = "paper"  # `shapes_tiny` with the paper's objective and completions
# Turning-point matching: ahead of the paper's form at equal seconds (docs/benchmarks.md). The pull
# to the old prediction is firm, because a trajectory's images are not what its states predict: with
# `objective.trust` = 1 the policy falls below the untrained one.
FASTER = {
    "objective.name": "matching",
    "objective.trust": 40.0,
    "train.step_weight": "uniform",  # the steps' weights are for next states
    "sample.completion": "multistep",
    "sample.completion_steps": 2,
}


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    known = "shapes_tiny" if recipe == PAPER else recipe
    c = recipes.build("tp_grpo", "turning_point", known)
    if recipe == PAPER:
        c.run_name = "tp_grpo-paper"
    if recipe == "shapes_tiny":
        c.update_from_flattened_dict(FASTER)
    return c
