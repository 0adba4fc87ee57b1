"""Tiny random models of the real classes, in the files and folders that users would have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from reward_models.aesthetic import Head

WIDTH = 16  # of a CLIP embedding
PROMPTS = [
    "a red cat",
    "two dogs",
    "a cat left of a dog",
    "a red cat",
    "a very " + "long " * 100 + "prompt",
]
OPEN_CLIP = "tiny-clip"


def images(n: int = 5, side: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def _scatter(model: torch.nn.Module, scale: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """Enlarge the random weights: at their usual scale all embeddings would nearly coincide."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_clip(folder: Path) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    towers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **towers,
            "vocab_size": len(words),
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**towers, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )
    _scatter(CLIPModel(config)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_head(file: Path) -> Path:
    torch.save(_scatter(Head(WIDTH), 0.1).state_dict(), file)
    return file


def save_open_clip(file: Path) -> Path:
    """The weights, wrapped as HPS wraps them, of an architecture that this registers."""
    tower = {"width": 32, "layers": 2}
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    described = file.parent / f"{OPEN_CLIP}.json"
    described.write_text(json.dumps(config))
    open_clip.add_model_config(described)
    model = _scatter(open_clip.create_model(OPEN_CLIP), 0.1)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    return file


def save_detector(folder: Path, num_labels: int = 80) -> Path:
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        num_labels=num_labels,
    )
    model = _scatter(Mask2FormerForUniversalSegmentation(config), 0.2)
    model.class_predictor.weight.data *= 3  # so that some classes pass the threshold
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 384, "width": 384}).save_pretrained(
        folder
    )  # like the published one
    return folder


def save_bert_tokenizer(folder: Path, size: int) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *("##" + letter for letter in letters),
    ]
    assert len(words) <= size
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder
