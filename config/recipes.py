"""The recipes by name: small changes to `base.get_config()`, the same for every algorithm."""

import difflib
from collections.abc import Callable

from ml_collections import ConfigDict

from config import base

SHAPES = "tp_grpo/shapes/weights"


def shapes_tiny(c: ConfigDict) -> None:
    """The embedded model on a laptop: 48 x 48 coloured shapes, no weights to fetch, about 7 minutes on 2 CPU cores.

    bash scripts/quickstart.sh

    Measured (docs/benchmarks.md), 5 seeds of TP-GRPO: held-out exact 0.23 to 0.33, gains of +0.075 to +0.140, each 4 to 6
    standard errors over prompts.
    """
    c.epochs = 70
    c.model.update(path=SHAPES, dtype="fp32", height=48, width=48, max_sequence_length=12, decode_batch_size=16)
    c.lora.update(rank=16, alpha=32)
    c.prompts.update(train="tp_grpo.shapes.captions:train", eval="tp_grpo.shapes.captions:held_out")
    c.rewards.scorers["shapes"] = {"weight": 1.0, "exact_share": 0.5}
    c.sample.update(guidance_scale=1.0, kind="sde", steps=6, window_size=3, groups_per_epoch=12, group_size=8)
    c.sample.update(batch_size=48, max_rows=96)
    c.advantage.global_std = True
    c.train.update(learning_rate=1.5e-3, clip_range=1e-4, max_ratio_dev=1e-4)
    c.train.update(beta=0.0, step_weight="velocity")
    c.ema.update(decay=0.95, every=1)
    c.eval.update(every=35, steps=10, members=3, batch_size=96)
    c.tracking.images_every = 35


def shapes_smoke(c: ConfigDict) -> None:
    """`shapes_tiny` in seconds: does everything once or twice, learns nothing."""
    shapes_tiny(c)
    c.epochs = 2
    c.sample.update(steps=4, window_size=2, groups_per_epoch=2, group_size=4, batch_size=4, max_rows=8)
    c.eval.update(every=1, steps=4, members=1, prompts=8, batch_size=8, images=4)
    c.tracking.update(images_every=1, trackers=())
    c.checkpoint.keep_every = 1


RECIPES: dict[str, Callable[[ConfigDict], None]] = {"shapes_tiny": shapes_tiny, "shapes_smoke": shapes_smoke}


def build(algorithm: str, credit: str, recipe: str) -> ConfigDict:
    """The recipe with the algorithm's credit; its default run_name is `algorithm-recipe`.

    Raises ValueError for an unknown recipe, with the nearest name.
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"config/{algorithm}.py: no recipe is called {recipe!r}{hint} Known: {', '.join(RECIPES)}.")
    c = base.get_config()
    with c.unlocked():
        RECIPES[recipe](c)
    c.credit.name = credit
    c.run_name = f"{algorithm}-{recipe}"
    return c
