"""The recipes: small changes to `base.get_config()`, the same for every algorithm.

`REWARD_MODEL` is a recipe for 32 GPUs, REWARD one of REWARDS and MODEL of `models.MODELS`; with sd3
and flux its figures are those of arXiv 2602.06422 (with KL). `REWARD_MODEL_MEMORY` is its variant
for one GPU of that memory (`models.MEMORY`). Such as

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:pickscore_sd3
    python scripts/train.py --config=config/tp_grpo.py:geneval_klein_24gb

Reported for SD3.5-Medium, Flow-GRPO and TP-GRPO: PickScore 24.02, 24.67; GenEval 0.9673, 0.9725;
OCR 0.9579, 0.9651. None has been reproduced at full size.
"""

import difflib
import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from config import base
from config.models import MEMORY, MODELS

SHAPES = "tp_grpo/shapes/weights"
REWARDS = {"pickscore": "txt", "geneval": "jsonl", "general_ocr": "txt"}  # suffix of its prompts
# As published curves were scored, quirks included; docs/rewards.md has the difference to "fixed".
SCORERS = {"geneval": {"weight": 1.0, "scoring": "reference"}}
Recipe = Callable[[ConfigDict], None]


def shapes_tiny(c: ConfigDict) -> None:
    """The embedded model on a laptop: 48 x 48 coloured shapes, no downloads, minutes on 2 cores.

    bash scripts/quickstart.sh

    Measured (docs/benchmarks.md), 5 seeds of TP-GRPO's: held-out exact gains +0.153 to +0.229.
    """
    c.epochs = 70
    c.model.update(path=SHAPES, dtype="fp32", height=48, width=48)
    c.model.update(max_sequence_length=12, decode_batch_size=16)
    c.lora.update(rank=16, alpha=32)
    c.prompts.update(train="tp_grpo.shapes.captions:train", eval="tp_grpo.shapes.captions:held_out")
    c.rewards.scorers["shapes"] = {"weight": 1.0, "exact_share": 0.5}
    c.sample.update(guidance_scale=1.0, kind="sde", steps=6, window_size=3)
    c.sample.update(groups_per_epoch=12, group_size=8, batch_size=48, max_rows=96)
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
    c.sample.update(steps=4, window_size=2)
    c.sample.update(groups_per_epoch=2, group_size=4, batch_size=4, max_rows=8)
    c.eval.update(every=1, steps=4, members=1, prompts=8, batch_size=8, images=4)
    c.tracking.update(images_every=1, trackers=())
    c.checkpoint.keep_every = 1


def _full_size(c: ConfigDict, reward: str, model: str, memory: str = "") -> None:
    c.prompts.train = f"dataset/{reward}/train.{REWARDS[reward]}"
    c.prompts.eval = f"dataset/{reward}/test.{REWARDS[reward]}"
    c.rewards.scorers[reward] = SCORERS.get(reward, 1.0)
    MODELS[model](c)
    if memory:
        MEMORY[model][memory](c)


RECIPES: dict[str, Recipe] = {"shapes_tiny": shapes_tiny, "shapes_smoke": shapes_smoke}
for reward in REWARDS:
    for model in MODELS:
        for memory in ("", *MEMORY[model]):
            name = "_".join(filter(None, (reward, model, memory)))
            RECIPES[name] = functools.partial(_full_size, reward=reward, model=model, memory=memory)


def build(algorithm: str, credit: str, recipe: str) -> ConfigDict:
    """The recipe with the algorithm's credit; its default run_name is `algorithm-recipe`.

    Raises ValueError for an unknown recipe, with the nearest name.
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"config/{algorithm}.py: no recipe is called {recipe!r}{hint} Known: "
            f"{', '.join(RECIPES)}."
        )
    c = base.get_config()
    with c.unlocked():
        RECIPES[recipe](c)
    c.credit.name = credit
    c.run_name = f"{algorithm}-{recipe}"
    return c
