"""Stable Diffusion 3 and 3.5: any checkpoint of diffusers' `StableDiffusion3Pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from tp_grpo.models.pipeline import JOINT_ATTENTION, PipelineBackbone


@dataclass(frozen=True)
class SD3Cond:
    """embeds (B, tokens, D): CLIP's tokens, then T5's; pooled (B, P)."""

    embeds: Tensor
    pooled: Tensor


class SD3(PipelineBackbone):
    """`Backbone` whose latents are (C, H, W)."""

    pipeline_class = StableDiffusion3Pipeline
    cond_class = SD3Cond
    text_parts = (
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
    )
    lora_targets = JOINT_ATTENTION
    classifier_free = True
    even_sigmas = False
    own_attention = "diffusers calls PyTorch's own attention there and takes no other"
    tokenizer = "tokenizer_3"

    @staticmethod
    def patch(transformer: Mapping[str, Any]) -> int:
        return int(transformer["patch_size"])

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> SD3Cond:
        tokens += clip_tokens
        embeds = torch.randn(rows, tokens, transformer["joint_attention_dim"], **options)
        return SD3Cond(embeds, torch.randn(rows, transformer["pooled_projection_dim"], **options))

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> SD3Cond:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            *(prompts, prompts, prompts),  # one for each encoder
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return SD3Cond(embeds, pooled)

    def predict(self, x: Tensor, sigma: Tensor, cond: SD3Cond, guidance_scale: float) -> Tensor:
        v: Tensor = self.transformer(
            hidden_states=x.to(cond.embeds.dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]
        return v
