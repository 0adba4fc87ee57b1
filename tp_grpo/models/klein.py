"""FLUX.2-klein: the base checkpoints of diffusers' `Flux2KleinPipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from einops import rearrange
from torch import Tensor

from tp_grpo.models.pipeline import JOINT_ATTENTION, PipelineBackbone
from tp_grpo.models.text import chat
from tp_grpo.settings import ModelSettings


@dataclass(frozen=True)
class KleinCond:
    """embeds (B, tokens, 3 D): three layers of Qwen3, padded to `model.max_sequence_length`."""

    embeds: Tensor


class Klein(PipelineBackbone):
    """`Backbone` whose latents are patches of the VAE's, (4 C, H, W), until they are decoded."""

    pipeline_class = Flux2KleinPipeline
    cond_class = KleinCond
    text_parts = ("text_encoder", "tokenizer")
    # Single blocks project queries, keys, values and MLP in one layer.
    lora_targets = (*JOINT_ATTENTION, "attn.to_qkv_mlp_proj", "attn.to_out")
    classifier_free = True
    even_sigmas = True
    dtypes = ("fp32", "bf16")

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: Any
    ) -> None:
        super().__init__(pipeline, model, device, encoders)
        self.latent_shape = pipeline.transformer.config.in_channels, self.rows, self.columns
        self.image_ids = _ids(self.rows, self.columns, 1, device)

    @classmethod
    def check_config(cls, model: ModelSettings, configs: Mapping[str, Any]) -> None:
        super().check_config(model, configs)
        if configs["index"].get("is_distilled"):
            raise ValueError(
                f"model.path = {model.path!r} is distilled to a few steps without guidance: "
                "training it with steps of its own blurs its images; take the base checkpoint, "
                "such as black-forest-labs/FLUX.2-klein-base-4B"
            )

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> KleinCond:
        return KleinCond(torch.randn(rows, tokens, transformer["joint_attention_dim"], **options))

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> KleinCond:
        embeds, _ = pipeline.encode_prompt(
            prompts, device=device, max_sequence_length=max_sequence_length
        )
        return KleinCond(embeds)

    @staticmethod
    def text_of(pipeline: Any, prompt: str) -> str:
        return chat(pipeline, prompt, thinking=False)

    def mu(self, scheduler: Mapping[str, Any], steps: int) -> float:
        return float(compute_empirical_mu(self.rows * self.columns, steps))

    def predict(self, x: Tensor, sigma: Tensor, cond: KleinCond, guidance_scale: float) -> Tensor:
        v: Tensor = self.transformer(
            hidden_states=rearrange(x, "b c h w -> b (h w) c").to(cond.embeds.dtype),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=cond.embeds,
            txt_ids=_ids(1, 1, cond.embeds.shape[1], x.device),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return rearrange(v, "b (h w) c -> b c h w", h=self.rows)

    def unpack(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, variance = (
            s.float()[:, None, None] for s in (vae.bn.running_mean, vae.bn.running_var)
        )
        x = x * (variance + vae.config.batch_norm_eps).sqrt() + mean
        return rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)


def _ids(rows: int, columns: int, tokens: int, device: torch.device) -> Tensor:
    """(rows columns tokens, 4): 0, row, column, token."""
    ranges = (torch.arange(n, device=device) for n in (1, rows, columns, tokens))
    return torch.cartesian_prod(*ranges)
