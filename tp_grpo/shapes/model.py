"""The embedded model, untrained: a `StableDiffusion3Pipeline` small enough to train on a CPU."""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tp_grpo.shapes.captions import words

CLIP_TOKENS = 16
T5_TOKENS = 12  # the longest caption has ten words; the default of 256 would drown 36 image tokens
JOINT_DIM = 128
CLIP_WIDTH = JOINT_DIM // 2  # the two encoders side by side fill the joint width


def build_pipeline(seed: int) -> StableDiffusion3Pipeline:
    """Random weights from `seed`: transformer 2.3 M, VAE 0.18 M, CLIP 2 x 0.15 M, T5 0.07 M."""
    torch.manual_seed(seed)
    clip_tokenizer = build_clip_tokenizer()
    t5_tokenizer = build_t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=build_vae(),
        text_encoder=build_clip(clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=build_clip(clip_tokenizer),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=build_t5(t5_tokenizer),
        tokenizer_3=t5_tokenizer,
    )


def build_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=JOINT_DIM,
        caption_projection_dim=JOINT_DIM,
        pooled_projection_dim=JOINT_DIM,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=48,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,  # both are measured on the latents after the VAE is trained
        shift_factor=0.0,
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        # An eos id of 2 would switch CLIP to its legacy pooling: the ids are the tokenizer's own.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    # Without a third encoder the pipeline pads the prompt with 256 zeros, which shifts images.
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=JOINT_DIM,
        d_kv=32,
        num_heads=2,
        d_ff=JOINT_DIM,
        num_layers=1,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def build_clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE whose merges make each caption word one token; other text falls into bytes."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(
        words(),
        trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in merges)]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def build_t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces, one for each caption word."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(f"▁{word}", -1.0) for word in words()]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=T5_TOKENS)
