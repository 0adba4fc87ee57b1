"""What several algorithms change in a recipe."""

from ml_collections import ConfigDict

from config.recipes import SHAPES


def published(c: ConfigDict) -> bool:
    """Whether it is a recipe of a large model, with its method's published settings."""
    return bool(c.model.path != SHAPES)


def whole_groups(c: ConfigDict) -> None:
    """As many groups as split over 32 GPUs (published recipes) or 8 (variants for one)."""
    unit = 64 if c.sample.groups_per_epoch >= 32 else 16
    if published(c):
        c.sample.groups_per_epoch = -(-c.sample.groups_per_epoch // unit) * unit


def clean_images(c: ConfigDict, *, guidance: bool = False) -> None:
    """Nothing of a trajectory is trained: a second-order solver makes the images.

    guidance: classifier-free, while sampling alone; FLUX's is an input, and stays.
    """
    if c.model.type != "flux":
        c.sample.guidance_scale = c.sample.guidance_scale if guidance else 1.0
        c.train.guidance_scale = 1.0 if guidance else 0.0
    c.train.step_weight = "uniform"  # there are no steps
    c.sample.update(window="fixed", window_stop=0)
    if published(c):
        c.sample.update(completion="multistep", completion_steps=c.sample.steps)
        c.train.updates_per_epoch = 1
