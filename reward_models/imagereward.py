"""ImageReward: human preference by BLIP with a regression head (Xu et al. 2023, arXiv 2304.05977).

The published file holds Salesforce's BLIP, with that repository's names of the tensors. They are
renamed here to those of `BlipVisionModel` and `BlipTextModel` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.aesthetic import Head
from reward_models.check import Check, matching_cases
from reward_models.loading import Source
from reward_models.model import ModelScorer

# The sizes of the published model, as arguments of BlipVisionConfig and BlipTextConfig.
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "bos_token_id": 30522,  # BLIP's [DEC] and [ENC] end the vocabulary; no prompt contains them
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "is_decoder": True,  # gives the layers cross attention; the mask stays bidirectional
}
CONTEXT = 35  # BERT tokens that the model was trained to read
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw rewards, on the authors' images

# The projections serve BLIP's contrastive loss, the positions are 0 .. n-1: neither is needed.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_RENAMED = {  # replaced one after the other
    "mlp.layers.": "head.layers.",
    "blip.text_encoder.": "text.",
    "blip.visual_encoder.": "vision.",
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "vision.norm.": "vision.post_layernorm.",
    "vision.blocks.": "vision.encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.": ".self_attn.",
}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under RewardNet's names, without those that it does not use."""
    result = {}
    for key, tensor in state.items():
        if not key.startswith(_UNUSED):
            for old, new in _RENAMED.items():
                key = key.replace(old, new)
            result[key] = tensor
    return result


class RewardNet(nn.Module):
    """The text encoder reads the prompt and, by cross attention, the image.

    Its first token feeds the head.
    """

    def __init__(self) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        self.text = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)
        self.head = Head(TEXT["hidden_size"])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """pixels (B, 3, H, W), tokens and mask (B, L) -> raw reward (B,) fp32."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        text = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=image)
        return self.head(text.last_hidden_state[:, 0].float()).squeeze(-1)


class ImageReward(ModelScorer):
    """score = (raw reward - 0.167) / 1.033: mean 0 and deviation 1 over the authors' images.

    About -2.3 to 2. path: ImageReward.pt, a folder with it or a hub id. tokenizer_path: a local
    folder or hub id of BERT's uncased tokenizer. model, tokenizer: both, already loaded.
    """

    weights = Source("imagereward", "THUDM/ImageReward", "1.8 GB", ("ImageReward.pt",))
    tokenizer_files = Source(
        "imagereward",
        "google-bert/bert-base-uncased",
        "1 MB",
        ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        option="tokenizer_path",
        needed=("tokenizer.json",),
    )
    doctor = Check(weights=(weights, tokenizer_files), cases=matching_cases)

    def __init__(
        self,
        path: str = "",
        tokenizer_path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: RewardNet | None = None,
        tokenizer: Any = None,
    ) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor

        super().__init__(device, dtype, batch_size)
        self.weights.locate(path)
        self.tokenizer = tokenizer or self.tokenizer_files.reader(
            AutoTokenizer.from_pretrained, tokenizer_path
        )
        net = model or self._load(path)
        net.vision.to(self.dtype)
        net.text.to(self.dtype)
        self.hold(net)
        side = net.vision.config.image_size
        # BLIP normalises pixels by the same mean and deviation as CLIP.
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def _load(self, path: str) -> RewardNet:
        state = renamed(self.weights.state(path))
        net = RewardNet()
        self.weights.fill(net, state, path)
        return net

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        return (torch.cat(self.in_chunks(self._raw, images, prompts)) - MEAN) / STD

    def _raw(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        ids, mask = self.tokens(self.tokenizer, prompts, CONTEXT)
        return self.model(self.pixels(self.processor, images), ids, mask)
