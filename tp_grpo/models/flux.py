"""FLUX.1: any checkpoint of diffusers' `FluxPipeline`, guidance-distilled (dev) or not (schnell)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from tp_grpo.models.base import JOINT_ATTENTION
from tp_grpo.models.pipeline import PipelineBackbone
from tp_grpo.models.pretrained import check_resolution, check_text, vae_scale
from tp_grpo.models.text import TextEncoders
from tp_grpo.settings import ModelSettings

PATCH = 2  # latent pixels a side that the pipeline packs into one token


@dataclass(frozen=True)
class FluxCond:
    """embeds (B, tokens, D), of T5; pooled (B, P), of CLIP."""

    embeds: Tensor
    pooled: Tensor


class Flux(PipelineBackbone):
    """`Backbone` whose guidance is an embedded scalar; latents stay packed, (tokens, 4 C), until they are decoded."""

    pipeline_class = FluxPipeline
    cond_class = FluxCond
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    takes_attention_backend = True
    # The names end alike in double and single blocks, so the single blocks' q, k and v are adapted too.
    lora_targets = (
        *JOINT_ATTENTION,
        *(f"{block}.net.{layer}" for block in ("ff", "ff_context") for layer in ("0.proj", "2")),
    )

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: TextEncoders
    ) -> None:
        super().__init__(pipeline, model, device, encoders)
        unit = pipeline.vae_scale_factor * PATCH
        self.rows, self.columns = model.height // unit, model.width // unit
        self.latent_shape = (self.rows * self.columns, pipeline.transformer.config.in_channels)
        grid = torch.zeros(self.rows, self.columns, 3, device=device)
        grid[..., 1] += torch.arange(self.rows, device=device)[:, None]
        grid[..., 2] += torch.arange(self.columns, device=device)
        self.image_ids = grid.reshape(-1, 3)

    @classmethod
    def check_config(
        cls, model: ModelSettings, *, transformer: dict[str, Any], vae: dict[str, Any]
    ) -> None:
        check_resolution(model.height, model.width, vae_scale(vae) * PATCH)
        if transformer["in_channels"] != PATCH**2 * vae["latent_channels"]:
            raise ValueError(
                f"model.path = {model.path!r}: its transformer reads {transformer['in_channels']} channels a token, "
                f"and its VAE packs {PATCH**2} x {vae['latent_channels']}; fill and control variants cannot be trained"
            )
        check_text(model.max_sequence_length, cls.__name__)

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> FluxCond:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompts, device=device, max_sequence_length=max_sequence_length
        )
        return FluxCond(embeds, pooled)

    def sigmas(self, steps: int) -> Tensor:
        """(T+1,) fp32, as the pipeline sets them: even steps, shifted by the number of image tokens."""
        scheduler = self.pipeline.scheduler
        settings = scheduler.config
        default = {
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
            "base_shift": 0.5,
            "max_shift": 1.15,
        }
        mu = calculate_shift(
            len(self.image_ids), *(settings.get(name, value) for name, value in default.items())
        )
        even = None if settings.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(steps, device=self.device, sigmas=even, mu=mu)
        sigmas: Tensor = scheduler.sigmas.to(torch.float32)
        return sigmas

    def velocity(self, x: Tensor, sigma: Tensor, cond: FluxCond, guidance_scale: float) -> Tensor:
        dtype = cond.embeds.dtype
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full([len(x)], guidance_scale, device=x.device)
        v: Tensor = self.transformer(
            hidden_states=x.to(dtype),
            timestep=sigma.expand(len(x)),
            guidance=guidance,
            pooled_projections=cond.pooled,
            encoder_hidden_states=cond.embeds,
            txt_ids=x.new_zeros(cond.embeds.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0].float()
        return v

    def _decode(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.rows, self.columns)).unflatten(3, (-1, PATCH, PATCH))
        return super()._decode(x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))
