"""Stable Diffusion 3 and 3.5: any checkpoint of diffusers' `StableDiffusion3Pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from tp_grpo.models import base, lora

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class SD3Cond:
    """embeds (B, tokens, D): CLIP beside T5; pooled (B, P)."""

    embeds: Tensor
    pooled: Tensor


class SD3:
    """`Backbone` over the stock pipeline's own parts; guidance is classifier-free, against the empty prompt."""

    lora_targets = tuple(f"attn.{name}" for name in _ATTENTION)

    def __init__(self, pipeline: StableDiffusion3Pipeline, model: Any, device: torch.device) -> None:
        self.pipeline = pipeline
        self.transformer: torch.nn.Module = pipeline.transformer
        self.device = device
        self.max_sequence_length = model.max_sequence_length
        self.decode_batch_size = model.decode_batch_size
        scale = pipeline.vae_scale_factor
        self.patch = pipeline.transformer.config.patch_size
        self.latent_shape = (pipeline.transformer.config.in_channels, model.height // scale, model.width // scale)
        self._empty: SD3Cond | None = None

    @classmethod
    def load(cls, model: Any, device: torch.device) -> SD3:
        """Raises ValueError before weights load; see `base.load`."""
        path = base.find_checkpoint(model.path, StableDiffusion3Pipeline.__name__)
        where = {"revision": model.revision or None}
        try:
            transformer = SD3Transformer2DModel.load_config(path, subfolder="transformer", **where)
            vae = AutoencoderKL.load_config(path, subfolder="vae", **where)
        except OSError as error:
            raise ValueError(base.unreadable(model.path)) from error
        unit = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]
        base.check_resolution(model.height, model.width, unit, transformer["pos_embed_max_size"])
        pipeline = StableDiffusion3Pipeline.from_pretrained(path, torch_dtype=base.DTYPES[model.dtype], **where)
        pipeline.set_progress_bar_config(disable=True)
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval().to(device)
        if pipeline.vae.dtype != torch.float32:
            pipeline.vae.to(torch.float32)
        return cls(pipeline, model, device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> SD3Cond:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return SD3Cond(embeds, pooled)

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
        if guided:
            empty = self._negative()
            embeds = torch.cat([empty.embeds.expand_as(embeds), embeds])
            pooled = torch.cat([empty.pooled.expand_as(pooled), pooled])
            x = torch.cat([x, x])
        v: Tensor = self.transformer(
            hidden_states=x.to(embeds.dtype),
            timestep=(sigma * 1000).expand(len(x)),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        if guided:
            without, with_prompt = v.chunk(2)
            v = without + guidance_scale * (with_prompt - without)
        return v

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        x = x.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images = [vae.decode(chunk, return_dict=False)[0] for chunk in x.split(self.decode_batch_size)]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1)

    def save_lora(self, folder: Path) -> None:
        lora.save(StableDiffusion3Pipeline, self.pipeline.transformer, folder)

    def _negative(self) -> SD3Cond:
        if self._empty is None:
            self._empty = self.encode([""])
        return self._empty
