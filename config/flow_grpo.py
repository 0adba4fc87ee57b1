"""Flow-GRPO (arXiv 2505.05470): every step gets the reward of the final image.

--config=config/flow_grpo.py:RECIPE
"""

from ml_collections import ConfigDict

from config import recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    return recipes.build("flow_grpo", "terminal", recipe)
