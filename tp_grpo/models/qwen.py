"""Qwen-Image: the checkpoints of diffusers' `QwenImagePipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import QwenImagePipeline
from einops import rearrange
from torch import Tensor

from tp_grpo.models.pipeline import JOINT_ATTENTION, PipelineBackbone
from tp_grpo.models.text import RaggedCond
from tp_grpo.settings import ModelSettings

PATCH = 2  # latent pixels a side that one token packs


class QwenImage(PipelineBackbone):
    """`Backbone` whose latents stay packed, (tokens, 4 C), until they are decoded."""

    pipeline_class = QwenImagePipeline
    cond_class = RaggedCond
    text_parts = ("text_encoder", "tokenizer")
    lora_targets = (
        *JOINT_ATTENTION,
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )
    classifier_free = True
    even_sigmas = True
    dtypes = ("fp32", "bf16")
    template_tokens = 34  # of the system prompt, which the stock pipeline drops
    own_attention = "its prompts differ in length and need a mask, which most kernels do not take"
    max_text = 1024
    text_chunk = 1  # it pads to the longest prompt of a call

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: Any
    ) -> None:
        super().__init__(pipeline, model, device, encoders)
        self.latent_shape = self.rows * self.columns, pipeline.transformer.config.in_channels
        last = f"transformer_blocks.{len(pipeline.transformer.transformer_blocks) - 1}"
        ends = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
        self.frozen = tuple(f"{last}.{end}" for end in ends)  # the text after it is not read

    @staticmethod
    def vae_scale(vae: Mapping[str, Any]) -> int:
        return int(2 ** len(vae["temperal_downsample"]))

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> RaggedCond:
        return RaggedCond.random(rows, tokens, transformer["joint_attention_dim"], **options)

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> RaggedCond:
        embeds, mask = pipeline.encode_prompt(
            prompts, device=device, max_sequence_length=max_sequence_length
        )
        lengths = torch.full((len(embeds),), embeds.shape[1]) if mask is None else mask.sum(1)
        return RaggedCond(embeds, lengths.cpu())

    @staticmethod
    def text_of(pipeline: Any, prompt: str) -> str:
        return str(pipeline.prompt_template_encode.format(prompt))

    def predict(self, x: Tensor, sigma: Tensor, cond: RaggedCond, guidance_scale: float) -> Tensor:
        places = torch.arange(cond.embeds.shape[1])
        own = places < cond.lengths[:, None]
        v: Tensor = self.transformer(
            hidden_states=x.to(cond.embeds.dtype),
            timestep=sigma,
            encoder_hidden_states=cond.embeds,
            encoder_hidden_states_mask=None if own.all() else own.to(x.device, non_blocking=True),
            img_shapes=[[(1, self.rows, self.columns)]] * len(x),
            return_dict=False,
        )[0]
        return v

    def guided(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """Each token keeps the length that it has without guidance."""
        v = super().guided(without, with_prompt, scale)
        return v * (with_prompt.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))

    def unpack(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b (h w) (c p q) -> b c 1 (h p) (w q)", h=self.rows, p=PATCH, q=PATCH)
        config = self.pipeline.vae.config
        mean, std = (
            x.new_tensor(values)[:, None, None, None]
            for values in (config.latents_mean, config.latents_std)
        )
        return x * std + mean
