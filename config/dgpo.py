"""DGPO (arXiv 2510.08425): a preference between the good and the bad images of a group.

--config=config/dgpo.py:RECIPE

The settings are those of its public code for SD3.5-Medium in its default mode: images with
guidance, updates without. There the old policy begins to sample after some hundred updates, and a
group has 16 images; here it samples from the start, and a group has 24, better by a comment there.
Nothing is published for PickScore or FLUX.1-dev.
"""

from ml_collections import ConfigDict

from config import changes, recipes

NOISIEST = {"geneval": 0.5, "general_ocr": 0.7, "pickscore": 0.6}


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("dgpo", "terminal", recipe)
    c.objective.update(name="dgpo", noisiest=0.6)
    if changes.published(c):
        reward = next(name for name in NOISIEST if recipe.startswith(name))
        c.objective.update(timesteps=4, dgpo_sharpness=100.0, old_ramp=0.001, old_max=0.3)
        c.objective.noisiest = 0.7 if c.model.type == "flux" else NOISIEST[reward]
        c.advantage.global_std = reward == "general_ocr"
        c.lora.update(rank=64, alpha=128)
        c.train.beta = 1e-3
        changes.whole_groups(c)
        c.sample.batch_size = c.sample.group_size
        changes.clean_images(c, guidance=True)
    else:
        changes.clean_images(c)
    if recipe == "shapes_smoke":  # an update for 2 processes, each with whole groups
        c.sample.groups_per_epoch = 4
    return c
