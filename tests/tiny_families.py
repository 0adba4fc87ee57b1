"""A tiny checkpoint of every family, and how its stock pipeline is called: one entry a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests import tiny_models
from tests.tiny_models import CPU, PROMPTS, stir, vae
from tp_grpo import models
from tp_grpo.models.families import adapter
from tp_grpo.models.policy import Policy
from tp_grpo.shapes import card
from tp_grpo.shapes.model import build_pipeline

WIDTH = 16  # of the text encoders
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """type: `model.type`. tokens: `model.max_sequence_length` that holds PROMPTS.

    guidance: our scale and the number of prompts -> the stock pipeline's arguments.
    """

    type: str
    save: Callable[[Path], Path]
    tokens: int = 12
    guidance: Callable[[float, int], dict[str, Any]] = lambda scale, count: {
        "guidance_scale": scale
    }

    def load(self, path: Path, **fields: object) -> Any:
        """The backbone; fields of `config.model`."""
        fields = {"max_sequence_length": self.tokens} | fields
        return models.load(tiny_models.settings(path, self.type, **fields), CPU)

    def stock(self, path: Path, **parts: Any) -> Any:
        """The stock pipeline; parts in the place of the folder's."""
        return adapter(self.type).pipeline_class.from_pretrained(path, **parts)

    def draw(
        self, pipeline: Any, noise: Tensor, guidance: float, steps: int, size: tuple[int, int]
    ) -> Tensor:
        """PROMPTS as the stock pipeline draws them -> (2, 3, H, W)."""
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            prompt=list(PROMPTS),
            latents=noise,
            num_inference_steps=steps,
            height=size[0],
            width=size[1],
            max_sequence_length=self.tokens,
            output_type="np",
            **self.guidance(guidance, len(PROMPTS)),
        ).images
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def lora(backbone: Any, *, alpha: float = 8, moved: float = 0.1) -> Policy:
    """A policy of rank 4 on the backbone, moved at random."""
    policy = Policy(
        backbone.transformer,
        rank=4,
        alpha=alpha,
        targets=backbone.lora_targets,
        kl=True,
        frozen=backbone.frozen,
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return policy


def save_sd35_medium(folder: Path) -> Path:
    """As `save_sd3`, with a second attention over the image in the first blocks."""
    pipeline = build_pipeline(seed=3)
    config = dict(pipeline.transformer.config) | {"dual_attention_layers": (0, 1)}
    pipeline.transformer = SD3Transformer2DModel.from_config(config)
    stir(pipeline.transformer)
    card.save(pipeline, folder)
    return folder


def save_klein(folder: Path) -> Path:
    """A `Flux2KleinPipeline`; it reads layers 9, 18 and 27 of its text encoder."""
    torch.manual_seed(4)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=32,
        guidance_embeds=False,
    )
    coder = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    coder.bn.running_mean.normal_(std=0.3)
    coder.bn.running_var.uniform_(0.5, 2.0)
    stir(transformer)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=coder,
        text_encoder=qwen3(Qwen3ForCausalLM, layers=27),
        tokenizer=tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_zimage(folder: Path) -> Path:
    """A `ZImagePipeline`, whose text and image tokens are padded to multiples of 32."""
    torch.manual_seed(4)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[512, 64, 64],
    )
    stir(transformer)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=qwen3(Qwen3Model, layers=3),
        tokenizer=tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """A `QwenImagePipeline`, whose last sigma before 0 is fixed."""
    torch.manual_seed(4)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    stir(transformer)
    text = text_sizes(2) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [0]}
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 2.0, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def tokenizer() -> Qwen2Tokenizer:
    """A token a byte, and the three that its chats need."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=special[1:])
    made.chat_template = CHAT
    return made


def text_sizes(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def qwen3(kind: type, layers: int) -> Any:
    return kind(Qwen3Config(**text_sizes(layers), head_dim=8))


FAMILIES = {
    "sd3": Family("sd3", save_sd35_medium),
    "sd35_large": Family("sd3", tiny_models.save_sd3),
    "flux": Family("flux", tiny_models.save_flux),
    "klein": Family("klein", save_klein, tokens=80),
    "zimage": Family(
        "zimage", save_zimage, tokens=80, guidance=lambda scale, _: {"guidance_scale": scale - 1}
    ),
    "qwen": Family(
        "qwen",
        save_qwen,
        tokens=300,
        guidance=lambda scale, count: {
            "true_cfg_scale": scale,
            "negative_prompt": [""] * count if scale > 1 else None,
        },
    ),
}
