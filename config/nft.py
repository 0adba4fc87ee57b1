"""DiffusionNFT (arXiv 2509.16117): clean images noised afresh, no trajectory, no guidance.

--config=config/nft.py:RECIPE

Published for SD3.5-Medium, with the same settings but for OCR; nothing for FLUX.1-dev.
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("nft", "terminal", recipe)
    c.objective.name = "nft"
    changes.clean_images(c)
    if changes.published(c):
        c.objective.update(timesteps=c.sample.steps - 1, old_ramp=0.001, old_max=0.5)
        c.advantage.global_std = True
        c.train.beta = 1e-4
        c.ema.update(decay=0.9, every=1)
    if recipe.startswith("general_ocr"):
        c.objective.update(nft_mix=0.1, old_flat=75, old_ramp=0.0075, old_max=0.999)
        c.train.updates_per_epoch = 2
    return c
