"""AWM (arXiv 2509.25050): flow matching weighted by the advantage, clipped like PPO.

--config=config/awm.py:RECIPE

The settings are those of its public code for SD3.5-Medium. There the times are one of each of six
strata, and the images come from a third-order solver; here times are drawn from all but the last
tenth of the steps. Nothing is published for FLUX.1-dev.
"""

from ml_collections import ConfigDict

from config import changes, recipes

BETA = {"geneval": 3e-3, "general_ocr": 3e-3, "pickscore": 1e-4}
GROUPS = {"geneval": 72, "general_ocr": 72, "pickscore": 24}


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("awm", "terminal", recipe)
    c.objective.name = "awm"
    if changes.published(c):
        reward = next(name for name in BETA if recipe.startswith(name))
        if c.model.type == "sd3":
            c.sample.steps = 14
        times = int(0.9 * c.sample.steps)
        c.objective.update(timesteps=min(6, times), noisiest=times / c.sample.steps)
        c.objective.update(old_ramp=0.001, old_max=0.3)
        c.advantage.global_std = True
        c.train.beta = BETA[reward]
        c.ema.update(decay=0.99, every=1)
        if c.sample.groups_per_epoch == 48:
            c.sample.groups_per_epoch = GROUPS[reward]
    changes.clean_images(c)
    return c
