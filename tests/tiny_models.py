"""Checkpoints of the real classes with random weights, small and saved as a user's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from config import base
from tp_grpo.method import sampler
from tp_grpo.settings import ModelSettings, Settings
from tp_grpo.shapes import card
from tp_grpo.shapes.model import build_clip_tokenizer, build_pipeline, build_t5, build_t5_tokenizer
from tp_grpo.train.rollout import velocity_of

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a green triangle above a purple square"]
JOINT, POOLED, TOKENS = 128, 32, 16


def save_sd3(folder: Path) -> Path:
    """A `StableDiffusion3Pipeline`; a shift, a scaling and biases that are not trivial."""
    pipeline = build_pipeline(seed=3)
    pipeline.vae.register_to_config(shift_factor=0.3, scaling_factor=1.7)
    stir(pipeline.transformer)
    card.save(pipeline, folder)
    return folder


def save_flux(folder: Path, *, guidance_embeds: bool = True) -> Path:
    """A `FluxPipeline`, shifted by the number of image tokens as FLUX.1-dev is."""
    torch.manual_seed(4)
    clip, t5 = build_clip_tokenizer(), build_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    stir(transformer)
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=POOLED,
                intermediate_size=2 * POOLED,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        tokenizer=clip,
        text_encoder_2=build_t5(t5),
        tokenizer_2=t5,
    )
    pipeline.save_pretrained(folder)
    return folder


SAVE = {"sd3": save_sd3, "flux": save_flux}  # by `model.type`


def other_than(kind: str) -> str:
    return next(other for other in SAVE if other != kind)


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.4,
        shift_factor=0.1,
    )


def stir(transformer: torch.nn.Module) -> None:
    """Zero-initialised modulations would hide the conditions."""
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def settings(path: Path, kind: str, **fields: object) -> ModelSettings:
    config = base.get_config()
    config.run_name = "tiny"
    tiny = {"type": kind, "path": str(path), "dtype": "fp32", "height": 48, "width": 48}
    config.model.update({**tiny, "max_sequence_length": 12, **fields})
    return Settings.read(config).model


def ode(backbone: Any, guidance: float, steps: int = 5) -> Tensor:
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    sigmas = backbone.sigmas(steps)
    with torch.no_grad():
        return sampler.ode(
            velocity_of(backbone, sigmas, backbone.encode(PROMPTS), guidance), noise, sigmas
        )
