"""Stable Diffusion 3 and 3.5: any checkpoint of diffusers' `StableDiffusion3Pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from tp_grpo.models.base import JOINT_ATTENTION
from tp_grpo.models.pipeline import PipelineBackbone
from tp_grpo.models.pretrained import check_resolution, check_text, vae_scale
from tp_grpo.models.text import TextEncoders
from tp_grpo.settings import ModelSettings
from tp_grpo.types import index, to


@dataclass(frozen=True)
class SD3Cond:
    """embeds (B, tokens, D): CLIP beside T5; pooled (B, P)."""

    embeds: Tensor
    pooled: Tensor


class SD3(PipelineBackbone):
    """`Backbone` whose guidance is classifier-free, against the empty prompt; latents are (C, H, W)."""

    pipeline_class = StableDiffusion3Pipeline
    cond_class = SD3Cond
    text_parts = (
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    takes_attention_backend = False
    lora_targets = JOINT_ATTENTION

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: TextEncoders
    ) -> None:
        super().__init__(pipeline, model, device, encoders)
        scale = pipeline.vae_scale_factor
        self.patch = pipeline.transformer.config.patch_size
        self.latent_shape = (
            pipeline.transformer.config.in_channels,
            model.height // scale,
            model.width // scale,
        )
        self._empty: SD3Cond | None = None

    @classmethod
    def check_config(
        cls, model: ModelSettings, *, transformer: dict[str, Any], vae: dict[str, Any]
    ) -> None:
        unit = vae_scale(vae) * transformer["patch_size"]
        check_text(model.max_sequence_length, cls.__name__)
        check_resolution(model.height, model.width, unit, unit * transformer["pos_embed_max_size"])

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> SD3Cond:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return SD3Cond(embeds, pooled)

    def encode(self, prompts: list[str]) -> SD3Cond:
        if self._empty is not None:
            return super().encode(prompts)
        # Guidance needs the empty prompt as well: together, while the encoders are on the device.
        together = super().encode([*prompts, ""])
        self._empty = to(index(together, slice(len(prompts), None)), self.device)
        return index(together, slice(len(prompts)))

    def encode_ahead(self, prompts: list[str]) -> None:
        super().encode_ahead([*prompts, ""])

    def sigmas(self, steps: int) -> Tensor:
        scheduler = self.pipeline.scheduler
        settings = scheduler.config
        mu = {}
        if settings.get("use_dynamic_shifting"):
            tokens = self.latent_shape[1] * self.latent_shape[2] // self.patch**2
            named = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            mu["mu"] = calculate_shift(tokens, *(settings[name] for name in named))
        scheduler.set_timesteps(steps, device=self.device, **mu)
        sigmas: Tensor = scheduler.sigmas.to(torch.float32)
        return sigmas

    def velocity(self, x: Tensor, sigma: Tensor, cond: SD3Cond, guidance_scale: float) -> Tensor:
        embeds, pooled = cond.embeds, cond.pooled
        guided = guidance_scale > 1
        timestep = (sigma * 1000).expand(len(x))
        if guided:
            empty = self._negative()
            embeds = torch.cat([empty.embeds.expand_as(embeds), embeds])
            pooled = torch.cat([empty.pooled.expand_as(pooled), pooled])
            x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep])
        v: Tensor = self.transformer(
            hidden_states=x.to(embeds.dtype),
            timestep=timestep,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        if guided:
            without, with_prompt = v.chunk(2)
            v = without + guidance_scale * (with_prompt - without)
        return v

    def _negative(self) -> SD3Cond:
        if self._empty is None:
            self.encode([""])
        assert self._empty is not None
        return self._empty
