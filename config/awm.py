"""AWM (arXiv 2509.25050): flow matching weighted by the advantage, clipped like PPO.

--config=config/awm.py:RECIPE
"""

from ml_collections import ConfigDict

from config import changes, recipes

BETA = {"geneval": 1e-3, "general_ocr": 3e-3, "pickscore": 1e-4}


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("awm", "terminal", recipe)
    c.objective.name = "awm"
    c.advantage.clip = 1.0
    if c.model.type == "sd3" and not recipe.startswith("shapes"):
        c.sample.steps = 14
    changes.without_guidance(c)
    if not recipe.startswith("shapes"):
        c.objective.timesteps = 6
        c.train.beta = next(beta for reward, beta in BETA.items() if recipe.startswith(reward))
    return c
