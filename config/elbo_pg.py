"""ELBO-PG (arXiv 2602.04663): policy gradients of the evidence bound, without a likelihood ratio.

--config=config/elbo_pg.py:RECIPE; its other forms:
`--config.objective.elbo_form=ratio` or `par`.

The settings are those of its public script for GenEval on SD3.5-Medium.
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("elbo_pg", "terminal", recipe)
    c.objective.update(name="elbo_pg", elbo_form="no_ratio")
    c.advantage.update(scale=0.1, global_std=False)
    changes.clean_images(c)
    if changes.published(c):
        c.objective.update(timesteps=c.sample.steps - 1, old_ramp=0.001, old_max=0.5)
        c.train.update(beta=1e-4, max_grad_norm=5.0)
    return c
