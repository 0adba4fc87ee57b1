"""The models of the recipes: what each changes in base.py, which is SD3.5-Medium as published.

MEMORY holds the variants for one GPU: a quarter of the prompts, whose batches fill 1, 2, 4 or 8
GPUs. Less memory costs time, not quality: the batch is kept where recomputing makes room. Each fits
by scripts/estimate.py; nothing has been run on a GPU.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

Change = Callable[[ConfigDict], None]


def sd3(c: ConfigDict) -> None:
    """SD3.5-Medium (2.5 B), as published."""


def sd35_large(c: ConfigDict) -> None:
    """SD3.5-Large (8 B): Medium's settings with the guidance of its model card."""
    c.model.update(path="stabilityai/stable-diffusion-3.5-large", dtype="bf16")
    c.model.gradient_checkpointing = True
    c.sample.update(guidance_scale=3.5, max_rows=18)


def flux(c: ConfigDict) -> None:
    """FLUX.1-dev (12 B), as published; its guidance is an input: one evaluation a step."""
    c.model.update(type="flux", path="black-forest-labs/FLUX.1-dev", dtype="bf16")
    c.lora.update(rank=64, alpha=128)
    c.sample.update(steps=6, window_size=5, guidance_scale=3.5, batch_size=3, max_rows=12)
    c.eval.steps = 28


def _flow_factory(c: ConfigDict) -> None:
    """What Flow-Factory's public recipes for FLUX.2-klein and Z-Image share (PickScore, 512 px).

    There every epoch draws one random step of 1, 2 and 3; here all three are random, since a step's
    credit needs one before or after it.
    """
    flux(c)
    c.model.max_sequence_length = 512
    c.sample.update(kind="sde", noise_level=0.7, window_start=1, window_size=3, group_size=16)
    c.train.update(beta=0.0, clip_range=1e-4)


def klein(c: ConfigDict) -> None:
    """FLUX.2-klein-base-4B (4 B): Flow-Factory's settings for the 9 B, there with 384 px."""
    _flow_factory(c)
    c.model.update(type="klein", path="black-forest-labs/FLUX.2-klein-base-4B")
    c.sample.update(steps=8, guidance_scale=4.0)


def zimage(c: ConfigDict) -> None:
    """Z-Image (6 B): Flow-Factory's settings, there without a LoRA; guidance 4 in its own scale."""
    _flow_factory(c)
    c.model.update(type="zimage", path="Tongyi-MAI/Z-Image", gradient_checkpointing=True)
    c.sample.update(steps=10, guidance_scale=5.0)
    c.eval.steps = 40


def qwen(c: ConfigDict) -> None:
    """Qwen-Image (20 B): Flow-GRPO's public settings for PickScore; LoRA and EMA are FLUX.1's.

    A window of two steps moves over the first five of ten.
    """
    flux(c)
    c.model.update(type="qwen", path="Qwen/Qwen-Image", max_sequence_length=512)
    c.model.gradient_checkpointing = True
    c.sample.update(steps=10, guidance_scale=4.0, kind="sde", noise_level=1.2)
    c.sample.update(window="random", window_size=2, window_stop=5)
    c.sample.update(groups_per_epoch=32, group_size=16, batch_size=4)
    c.advantage.global_std = True
    c.train.update(beta=0.0, clip_range=1e-4)
    c.eval.steps = 50


def _one_gpu(c: ConfigDict) -> None:
    c.model.dtype = "bf16"
    c.sample.groups_per_epoch //= 4


def _recomputed(c: ConfigDict) -> None:
    """The same batch, whose activations are made twice."""
    _one_gpu(c)
    c.model.update(gradient_checkpointing=True, decode_batch_size=4)
    c.sample.store_on_cpu = True


def _small_optimizer(c: ConfigDict) -> None:
    _recomputed(c)
    c.train.optimizer = "adamw_8bit"


def _pairs(c: ConfigDict) -> None:
    _one_gpu(c)
    c.sample.update(store_on_cpu=True, batch_size=2)


def _sd3_48gb(c: ConfigDict) -> None:
    _one_gpu(c)
    c.sample.update(store_on_cpu=True, batch_size=6)


def _stored(batch_size: int) -> Change:
    """Activations are stored, not made twice, for so few images at a time that they fit."""

    def change(c: ConfigDict) -> None:
        _one_gpu(c)
        c.model.gradient_checkpointing = False
        c.sample.batch_size = batch_size

    return change


MODELS: dict[str, Change] = {
    "sd3": sd3,
    "sd35_large": sd35_large,
    "flux": flux,
    "klein": klein,
    "zimage": zimage,
    "qwen": qwen,
}
MEMORY: dict[str, dict[str, Change]] = {
    "sd3": {"24gb": _recomputed, "48gb": _sd3_48gb, "80gb": _one_gpu},
    "sd35_large": {"48gb": _recomputed, "80gb": _stored(3)},
    "flux": {"48gb": _small_optimizer, "80gb": _one_gpu},
    "klein": {"24gb": _recomputed, "48gb": _pairs, "80gb": _one_gpu},
    "zimage": {"24gb": _small_optimizer, "48gb": _recomputed, "80gb": _stored(1)},
    "qwen": {"80gb": _small_optimizer},
}
