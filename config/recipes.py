"""The recipes by name: small changes to `base.get_config()`, the same for every algorithm.

`REWARD_MODEL` are the published ones, `REWARD_MODEL_MEMORY` their variants for one GPU.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ml_collections import ConfigDict

from config import base

SHAPES = "tp_grpo/shapes/weights"
Recipe = Callable[[ConfigDict], None]


def shapes_tiny(c: ConfigDict) -> None:
    """The embedded model on a laptop: 48 x 48 coloured shapes, no weights to fetch, about 7 minutes on 2 CPU cores.

    bash scripts/quickstart.sh

    Measured (docs/benchmarks.md), 5 seeds of TP-GRPO: held-out exact 0.23 to 0.33, gains of +0.075 to +0.140, each
    4 to 6 standard errors over prompts.
    """
    c.epochs = 70
    c.model.update(
        path=SHAPES, dtype="fp32", height=48, width=48, max_sequence_length=12, decode_batch_size=16
    )
    c.lora.update(rank=16, alpha=32)
    c.prompts.update(train="tp_grpo.shapes.captions:train", eval="tp_grpo.shapes.captions:held_out")
    c.rewards.scorers["shapes"] = {"weight": 1.0, "exact_share": 0.5}
    c.sample.update(
        guidance_scale=1.0, kind="sde", steps=6, window_size=3, groups_per_epoch=12, group_size=8
    )
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
    c.sample.update(
        steps=4, window_size=2, groups_per_epoch=2, group_size=4, batch_size=4, max_rows=8
    )
    c.eval.update(every=1, steps=4, members=1, prompts=8, batch_size=8, images=4)
    c.tracking.update(images_every=1, trackers=())
    c.checkpoint.keep_every = 1


@dataclass(frozen=True)
class Reward:
    """A published task: its prompt files, and what is reported for SD3.5-Medium trained with KL (arXiv 2602.06422)."""

    title: str
    suffix: str
    flow_grpo: float
    tp_grpo: float


REWARDS = {
    "pickscore": Reward("PickScore", "txt", 24.02, 24.67),
    "geneval": Reward("GenEval", "jsonl", 0.9673, 0.9725),
    "general_ocr": Reward("OCR", "txt", 0.9579, 0.9651),
}

# The base configuration is the published one for SD3.5-Medium.
MODELS: dict[str, dict[str, object]] = {
    "sd3": {},
    "flux": {
        "model.type": "flux",
        "model.path": "black-forest-labs/FLUX.1-dev",
        "model.dtype": "bf16",
        "lora.rank": 64,
        "lora.alpha": 128,
        "sample.steps": 6,
        "sample.window_size": 5,
        "sample.guidance_scale": 3.5,  # an input of the model: one evaluation a step, no second one
        "sample.batch_size": 3,
        "sample.max_rows": 12,
        "eval.steps": 28,
    },
}
TITLES = {"sd3": "SD3.5-Medium", "flux": "FLUX.1-dev"}

# A quarter of the prompts, whose batches fill 1, 2, 4 or 8 GPUs. What follows by size costs time, not quality: the
# batch is kept where recomputing makes room for it. FLUX.1-dev's weights alone fill 24 GB.
ONE_GPU: dict[str, object] = {"model.dtype": "bf16", "sample.groups_per_epoch": 12}
RECOMPUTE: dict[str, object] = {"model.gradient_checkpointing": True, "sample.store_on_cpu": True}
VARIANTS: dict[tuple[str, int], dict[str, object]] = {
    ("sd3", 24): ONE_GPU | RECOMPUTE | {"model.decode_batch_size": 4},
    ("sd3", 48): ONE_GPU | {"sample.store_on_cpu": True, "sample.batch_size": 6},
    ("sd3", 80): ONE_GPU,
    ("flux", 48): ONE_GPU
    | RECOMPUTE
    | {"model.decode_batch_size": 4, "train.optimizer": "adamw_8bit"},
    ("flux", 80): ONE_GPU,
}


def _published(reward: str, model: str) -> Recipe:
    def recipe(c: ConfigDict) -> None:
        suffix = REWARDS[reward].suffix
        c.prompts.update(
            train=f"dataset/{reward}/train.{suffix}", eval=f"dataset/{reward}/test.{suffix}"
        )
        c.rewards.scorers[reward] = 1.0
        c.update_from_flattened_dict(MODELS[model])

    task = REWARDS[reward]
    reported = (
        f"Reported for SD3.5-Medium with KL (arXiv 2602.06422): {task.title} {task.flow_grpo:g} with Flow-GRPO, "
        f"{task.tp_grpo:g} with TP-GRPO; this repository has not reproduced it at full size."
    )
    return _named(
        recipe,
        f"{reward}_{model}",
        f"{task.title} on {TITLES[model]} as published, for 32 GPUs.",
        "accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:{name}",
        reported
        if model == "sd3"
        else "This repository has not reproduced a figure for FLUX.1-dev at full size.",
    )


def _variant(published: Recipe, model: str, memory: int) -> Recipe:
    def recipe(c: ConfigDict) -> None:
        published(c)
        c.update_from_flattened_dict(VARIANTS[model, memory])

    name = published.__name__
    changed = ", ".join(f"{field} = {value!r}" for field, value in VARIANTS[model, memory].items())
    return _named(
        recipe,
        f"{name}_{memory}gb",
        f"`{name}` for one GPU of {memory} GB: {changed}.",
        "python scripts/train.py --config=config/tp_grpo.py:{name}",
        "That it fits is an estimate (scripts/estimate.py); what it reaches has not been measured.",
    )


def _named(recipe: Recipe, name: str, *paragraphs: str) -> Recipe:
    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = "\n\n".join(paragraphs).format(name=name)
    return recipe


def _all() -> Iterable[Recipe]:
    yield from (shapes_tiny, shapes_smoke)
    for reward in REWARDS:
        for model in MODELS:
            published = _published(reward, model)
            yield published
            yield from (
                _variant(published, model, memory) for of, memory in VARIANTS if of == model
            )


RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _all()}


def build(algorithm: str, credit: str, recipe: str) -> ConfigDict:
    """The recipe with the algorithm's credit; its default run_name is `algorithm-recipe`.

    Raises ValueError for an unknown recipe, with the nearest name.
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"config/{algorithm}.py: no recipe is called {recipe!r}{hint} Known: {', '.join(RECIPES)}."
        )
    c = base.get_config()
    with c.unlocked():
        RECIPES[recipe](c)
    c.credit.name = credit
    c.run_name = f"{algorithm}-{recipe}"
    return c
