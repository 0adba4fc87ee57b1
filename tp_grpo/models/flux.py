"""FLUX.1: any checkpoint of diffusers' `FluxPipeline`, guidance-distilled (dev) or not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from einops import rearrange
from torch import Tensor

from tp_grpo.models.pipeline import JOINT_ATTENTION, PipelineBackbone
from tp_grpo.settings import ModelSettings

PATCH = 2  # latent pixels a side that one token packs


@dataclass(frozen=True)
class FluxCond:
    """embeds (B, tokens, D) of T5; pooled (B, P) of CLIP."""

    embeds: Tensor
    pooled: Tensor


class Flux(PipelineBackbone):
    """`Backbone` whose latents stay packed, (tokens, 4 C), until they are decoded."""

    pipeline_class = FluxPipeline
    cond_class = FluxCond
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    # Single blocks have an `attn` too, so that their q, k and v are adapted as well.
    lora_targets = (
        *JOINT_ATTENTION,
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    classifier_free = False
    even_sigmas = True
    tokenizer = "tokenizer_2"

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: Any
    ) -> None:
        super().__init__(pipeline, model, device, encoders)
        self.latent_shape = self.rows * self.columns, pipeline.transformer.config.in_channels
        ranges = (torch.arange(n, device=device) for n in (1, self.rows, self.columns))
        self.image_ids = torch.cartesian_prod(*ranges).float()  # (tokens, 3): 0, row, column

    @classmethod
    def check_config(cls, model: ModelSettings, configs: Mapping[str, Any]) -> None:
        super().check_config(model, configs)
        transformer, vae = configs["transformer"], configs["vae"]
        if transformer["in_channels"] != PATCH**2 * vae["latent_channels"]:
            raise ValueError(
                f"model.path = {model.path!r}: its transformer reads {transformer['in_channels']} "
                f"channels a token, and its VAE packs {PATCH**2} x {vae['latent_channels']}; "
                "fill and control variants cannot be trained"
            )
        if not transformer["guidance_embeds"]:
            warnings.warn(
                f"model.path = {model.path!r} has no input for guidance: sample.guidance_scale is "
                "without effect; if it is distilled to a few steps, as FLUX.1-schnell is, training "
                "it with steps of its own blurs its images",
                stacklevel=2,
            )

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> FluxCond:
        embeds = torch.randn(rows, tokens, transformer["joint_attention_dim"], **options)
        return FluxCond(embeds, torch.randn(rows, transformer["pooled_projection_dim"], **options))

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> FluxCond:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompts, device=device, max_sequence_length=max_sequence_length
        )
        return FluxCond(embeds, pooled)

    def predict(self, x: Tensor, sigma: Tensor, cond: FluxCond, guidance_scale: float) -> Tensor:
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full([len(x)], guidance_scale, device=x.device)
        v: Tensor = self.transformer(
            hidden_states=x.to(cond.embeds.dtype),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=cond.pooled,
            encoder_hidden_states=cond.embeds,
            txt_ids=x.new_zeros(cond.embeds.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return v

    def unpack(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=self.rows, p=PATCH, q=PATCH)
        return super().unpack(x)
