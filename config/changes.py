"""What several algorithms change in a recipe."""

from ml_collections import ConfigDict

from config.recipes import SHAPES


def whole_groups(c: ConfigDict) -> None:
    """As many groups as split over 32 GPUs (published recipes) or 8 (variants for one)."""
    groups = {48: 64, 12: 16}.get(c.sample.groups_per_epoch)
    if groups and c.model.path != SHAPES:
        c.sample.groups_per_epoch = groups


def without_guidance(c: ConfigDict) -> None:
    """No classifier-free guidance; FLUX's is an input. A second-order solver makes the images."""
    if c.model.type == "sd3":
        c.sample.guidance_scale = 1.0
    if c.model.path != SHAPES:
        c.sample.update(completion="multistep", completion_steps=c.sample.steps)
