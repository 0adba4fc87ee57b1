"""DiffusionNFT (arXiv 2509.16117): clean images noised afresh, no trajectory, no guidance.

--config=config/nft.py:RECIPE
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("nft", "terminal", recipe)
    c.objective.name = "nft"
    changes.without_guidance(c)
    if not recipe.startswith("shapes"):
        # Its first schedule: the old policy, which samples, follows by ever smaller steps.
        c.objective.update(old_ramp=0.001, old_max=0.5, timesteps=c.sample.steps)
        c.objective.nft_mix = 0.1 if "ocr" in recipe else 1.0
        c.train.beta = 1e-4
    return c
