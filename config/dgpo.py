"""DGPO (arXiv 2510.08425): a preference between the good and the bad images of a group.

--config=config/dgpo.py:RECIPE
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("dgpo", "terminal", recipe)
    c.objective.update(name="dgpo", noisiest=0.6)
    changes.without_guidance(c)
    if not recipe.startswith("shapes"):
        c.objective.update(timesteps=4, dgpo_sharpness=100.0)
        changes.whole_groups(c)
        c.sample.batch_size = c.sample.group_size
    return c
