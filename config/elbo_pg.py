"""ELBO-PG (arXiv 2602.04663): policy gradients of the evidence bound, without a likelihood ratio.

--config=config/elbo_pg.py:RECIPE; its other forms:
`--config.objective.elbo_form=ratio` or `par`.
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("elbo_pg", "terminal", recipe)
    c.objective.update(name="elbo_pg", elbo_form="no_ratio")
    c.advantage.scale = 0.1
    changes.without_guidance(c)
    if not recipe.startswith("shapes"):
        c.train.beta = 1e-4
    return c
