"""The recipes: small changes to `base.get_config()`, the same for every algorithm.

`REWARD_MODEL` is a published recipe for 32 GPUs, with the figures of arXiv 2602.06422 (with KL).
`REWARD_MODEL_MEMORY` is its variant for one GPU: a quarter of the prompts, whose batches fill 1, 2,
4 or 8 GPUs. Less memory costs time, not quality: the batch is kept where recomputing makes room.
FLUX.1-dev's weights alone fill 24 GB.
"""

import difflib
import inspect
from collections.abc import Callable

from ml_collections import ConfigDict

from config import base

SHAPES = "tp_grpo/shapes/weights"
Recipe = Callable[[ConfigDict], None]


def shapes_tiny(c: ConfigDict) -> None:
    """The embedded model on a laptop: 48 x 48 coloured shapes, no downloads, 7 minutes on 2 cores.

    bash scripts/quickstart.sh

    Measured (docs/benchmarks.md), 5 seeds of TP-GRPO: held-out exact 0.23 to 0.33, gains of +0.075
    to +0.140, each 4 to 6 standard errors over prompts.
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


def pickscore_sd3(c: ConfigDict) -> None:
    """PickScore on SD3.5-Medium as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:pickscore_sd3

    Reported: PickScore 24.02 with Flow-GRPO, 24.67 with TP-GRPO; not reproduced at full size.
    """
    _task(c, "pickscore", "txt")


def pickscore_sd3_24gb(c: ConfigDict) -> None:
    """`pickscore_sd3` on one GPU of 24 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:pickscore_sd3_24gb
    """
    pickscore_sd3(c)
    _sd3_24gb(c)


def pickscore_sd3_48gb(c: ConfigDict) -> None:
    """`pickscore_sd3` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:pickscore_sd3_48gb
    """
    pickscore_sd3(c)
    _sd3_48gb(c)


def pickscore_sd3_80gb(c: ConfigDict) -> None:
    """`pickscore_sd3` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:pickscore_sd3_80gb
    """
    pickscore_sd3(c)
    _one_gpu(c)


def pickscore_flux(c: ConfigDict) -> None:
    """PickScore on FLUX.1-dev as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:pickscore_flux

    No figure for FLUX.1-dev has been reproduced at full size.
    """
    _task(c, "pickscore", "txt")
    _flux(c)


def pickscore_flux_48gb(c: ConfigDict) -> None:
    """`pickscore_flux` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:pickscore_flux_48gb
    """
    pickscore_flux(c)
    _flux_48gb(c)


def pickscore_flux_80gb(c: ConfigDict) -> None:
    """`pickscore_flux` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:pickscore_flux_80gb
    """
    pickscore_flux(c)
    _one_gpu(c)


def geneval_sd3(c: ConfigDict) -> None:
    """GenEval on SD3.5-Medium as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:geneval_sd3

    Reported: GenEval 0.9673 with Flow-GRPO, 0.9725 with TP-GRPO; not reproduced at full size.
    """
    _task(c, "geneval", "jsonl")


def geneval_sd3_24gb(c: ConfigDict) -> None:
    """`geneval_sd3` on one GPU of 24 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:geneval_sd3_24gb
    """
    geneval_sd3(c)
    _sd3_24gb(c)


def geneval_sd3_48gb(c: ConfigDict) -> None:
    """`geneval_sd3` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:geneval_sd3_48gb
    """
    geneval_sd3(c)
    _sd3_48gb(c)


def geneval_sd3_80gb(c: ConfigDict) -> None:
    """`geneval_sd3` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:geneval_sd3_80gb
    """
    geneval_sd3(c)
    _one_gpu(c)


def geneval_flux(c: ConfigDict) -> None:
    """GenEval on FLUX.1-dev as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:geneval_flux

    No figure for FLUX.1-dev has been reproduced at full size.
    """
    _task(c, "geneval", "jsonl")
    _flux(c)


def geneval_flux_48gb(c: ConfigDict) -> None:
    """`geneval_flux` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:geneval_flux_48gb
    """
    geneval_flux(c)
    _flux_48gb(c)


def geneval_flux_80gb(c: ConfigDict) -> None:
    """`geneval_flux` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:geneval_flux_80gb
    """
    geneval_flux(c)
    _one_gpu(c)


def general_ocr_sd3(c: ConfigDict) -> None:
    """OCR on SD3.5-Medium as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py --config=config/tp_grpo.py:general_ocr_sd3

    Reported: OCR 0.9579 with Flow-GRPO, 0.9651 with TP-GRPO; not reproduced at full size.
    """
    _task(c, "general_ocr", "txt")


def general_ocr_sd3_24gb(c: ConfigDict) -> None:
    """`general_ocr_sd3` on one GPU of 24 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:general_ocr_sd3_24gb
    """
    general_ocr_sd3(c)
    _sd3_24gb(c)


def general_ocr_sd3_48gb(c: ConfigDict) -> None:
    """`general_ocr_sd3` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:general_ocr_sd3_48gb
    """
    general_ocr_sd3(c)
    _sd3_48gb(c)


def general_ocr_sd3_80gb(c: ConfigDict) -> None:
    """`general_ocr_sd3` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:general_ocr_sd3_80gb
    """
    general_ocr_sd3(c)
    _one_gpu(c)


def general_ocr_flux(c: ConfigDict) -> None:
    """OCR on FLUX.1-dev as published, for 32 GPUs.

    accelerate launch --num_processes 32 scripts/train.py \\
        --config=config/tp_grpo.py:general_ocr_flux

    No figure for FLUX.1-dev has been reproduced at full size.
    """
    _task(c, "general_ocr", "txt")
    _flux(c)


def general_ocr_flux_48gb(c: ConfigDict) -> None:
    """`general_ocr_flux` on one GPU of 48 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:general_ocr_flux_48gb
    """
    general_ocr_flux(c)
    _flux_48gb(c)


def general_ocr_flux_80gb(c: ConfigDict) -> None:
    """`general_ocr_flux` on one GPU of 80 GB; it fits by estimate, its result is not measured.
    python scripts/train.py --config=config/tp_grpo.py:general_ocr_flux_80gb
    """
    general_ocr_flux(c)
    _one_gpu(c)


def _task(c: ConfigDict, reward: str, suffix: str) -> None:
    """The scorer and its prompts; base.py is the published configuration of SD3.5-Medium."""
    c.prompts.train = f"dataset/{reward}/train.{suffix}"
    c.prompts.eval = f"dataset/{reward}/test.{suffix}"
    c.rewards.scorers[reward] = 1.0


def _flux(c: ConfigDict) -> None:
    """The published changes for FLUX.1-dev, whose guidance is an input: one evaluation a step."""
    c.model.update(type="flux", path="black-forest-labs/FLUX.1-dev", dtype="bf16")
    c.lora.update(rank=64, alpha=128)
    c.sample.update(steps=6, window_size=5, guidance_scale=3.5, batch_size=3, max_rows=12)
    c.eval.steps = 28


def _one_gpu(c: ConfigDict) -> None:
    c.model.dtype = "bf16"
    c.sample.groups_per_epoch = 12


def _sd3_48gb(c: ConfigDict) -> None:
    _one_gpu(c)
    c.sample.update(store_on_cpu=True, batch_size=6)


def _sd3_24gb(c: ConfigDict) -> None:
    _one_gpu(c)
    c.model.update(gradient_checkpointing=True, decode_batch_size=4)
    c.sample.store_on_cpu = True


def _flux_48gb(c: ConfigDict) -> None:
    _sd3_24gb(c)  # FLUX.1-dev needs the same savings at 48 GB, and more
    c.train.optimizer = "adamw_8bit"


RECIPES: dict[str, Recipe] = {  # every public function above
    name: value
    for name, value in list(globals().items())
    if inspect.isfunction(value) and not name.startswith("_")
}


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
