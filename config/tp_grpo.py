"""TP-GRPO (arXiv 2602.06422): increments as step rewards, long-term gain at the turning points.

--config=config/tp_grpo.py:RECIPE; `--config.credit.name=incremental` gives increments alone.
"""

from ml_collections import ConfigDict

from config import recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    return recipes.build("tp_grpo", "turning_point", recipe)
