"""Z-Image: the checkpoints of diffusers' `ZImagePipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tp_grpo.models.pipeline import PipelineBackbone
from tp_grpo.models.text import RaggedCond, chat


class ZImage(PipelineBackbone):
    """`Backbone` whose latents are (C, H, W). The model's own time is 1 - sigma."""

    pipeline_class = ZImagePipeline
    cond_class = RaggedCond
    text_parts = ("text_encoder", "tokenizer")
    # Image and text are one stream, refined apart at first.
    lora_targets = (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )
    classifier_free = True
    even_sigmas = True
    dtypes = ("fp32", "bf16")
    own_attention = "its prompts differ in length and need a mask, which most kernels do not take"

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> RaggedCond:
        return RaggedCond.random(rows, tokens, transformer["cap_feat_dim"], **options)

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> RaggedCond:
        each, _ = pipeline.encode_prompt(
            list(prompts),  # which it overwrites
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        lengths = torch.tensor([len(embeds) for embeds in each])
        return RaggedCond(pad_sequence(each, batch_first=True), lengths)

    @staticmethod
    def text_of(pipeline: Any, prompt: str) -> str:
        return chat(pipeline, prompt, thinking=True)

    def predict(self, x: Tensor, sigma: Tensor, cond: RaggedCond, guidance_scale: float) -> Tensor:
        own = zip(cond.embeds, cond.lengths.tolist(), strict=True)
        images = x[:, :, None].to(cond.embeds.dtype)  # videos of one frame
        v = self.transformer(
            list(images), 1 - sigma, [embeds[:length] for embeds, length in own], return_dict=False
        )[0]
        return -torch.stack(v)[:, :, 0]
