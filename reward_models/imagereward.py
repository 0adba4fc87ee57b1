"""ImageReward: human preference by BLIP with a regression head (Xu et al. 2023, arXiv 2304.05977).

The published file has Salesforce's BLIP under that repository's names. Here its tensors are renamed into those of
`BlipVisionModel` and `BlipTextModel` of transformers; the sizes of the towers are read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.aesthetic import Head
from reward_models.check import Check, matching_cases
from reward_models.loading import Source
from reward_models.model import ModelScorer, chunks

WEIGHTS = Source("imagereward", "THUDM/ImageReward", "1.8 GB", ("ImageReward.pt",))
TOKENIZER = Source(
    "imagereward",
    "google-bert/bert-base-uncased",
    "1 MB",
    ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    option="tokenizer_path",
    needed=("tokenizer.json",),
)
MEAN, STD = (
    0.16717362830052426,
    1.0333394966054072,
)  # of the raw reward, over the authors' training images
CONTEXT = 35  # BERT tokens that the model was trained to read
HEAD_WIDTH = 64  # of an attention head, in every published BLIP

# The projections serve BLIP's contrastive loss, the positions are 0 .. n-1; the reward reads neither.
_UNREAD = re.compile(r"blip\.(vision_proj|text_proj)\.|.*\.position_ids$")
_RENAMED = (
    (r"^mlp\.", "head."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.",
        r"vision.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
)


class RewardNet(nn.Module):
    """The text encoder reads the prompt and, by cross attention, the image; its first token feeds the head."""

    def __init__(self, vision: Any, text: Any) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = Head(text.hidden_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """pixels (B, 3, H, W), tokens and mask (B, L) -> raw reward (B,) fp32."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state
        return self.head(read[:, 0].float()).squeeze(-1)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under RewardNet's names, without those that it does not read."""
    result = {}
    for key, tensor in state.items():
        if _UNREAD.match(key):
            continue
        for old, new in _RENAMED:
            key, found = re.subn(old, new, key)
            if found:
                break
        result[key] = tensor
    return result


def configs(state: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The BlipVisionConfig and BlipTextConfig that renamed tensors belong to. Raises KeyError where one is absent."""
    from transformers import BlipTextConfig, BlipVisionConfig

    patch = state["vision.embeddings.patch_embedding.weight"]
    positions = state["vision.embeddings.position_embedding"].shape[1] - 1
    words = state["text.embeddings.word_embeddings.weight"]
    vision = BlipVisionConfig(
        hidden_size=patch.shape[0],
        intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(state, "vision.encoder.layers."),
        num_attention_heads=patch.shape[0] // HEAD_WIDTH,
        image_size=round(positions**0.5) * patch.shape[-1],
        patch_size=patch.shape[-1],
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=patch.shape[0],
        intermediate_size=state["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(state, "text.encoder.layer."),
        num_attention_heads=words.shape[1] // HEAD_WIDTH,
        max_position_embeddings=state["text.embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        # The vocabulary ends with BLIP's [DEC] and [ENC], which no prompt becomes.
        bos_token_id=words.shape[0] - 2,
        is_decoder=True,  # this is what gives the layers cross attention; the mask stays bidirectional
    )
    return vision, text


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix))


def load_net(path: str = "") -> RewardNet:
    """RewardNet in fp32, from the file or folder `path` or else the published weights."""
    state = renamed(WEIGHTS.state(path))
    try:
        vision, text = configs(state)
    except KeyError as error:
        reason = f"they are not ImageReward's: no tensor {error}."
        raise WEIGHTS.missing(path or WEIGHTS.repo, reason) from error
    net = RewardNet(vision, text)
    WEIGHTS.fill(net, state, path)
    return net.eval()


class ImageReward(ModelScorer):
    """score = (raw reward - 0.167) / 1.033: mean 0 and deviation 1 over the authors' images.

    About -2.3 to 2. path: ImageReward.pt, a folder with it or a hub id. tokenizer_path: a local
    folder or hub id of BERT's uncased tokenizer. model, tokenizer: both, already loaded.
    """

    doctor = Check(weights=(WEIGHTS, TOKENIZER), cases=matching_cases)

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
        WEIGHTS.locate(path)
        self.tokenizer = tokenizer or TOKENIZER.pretrained(
            AutoTokenizer.from_pretrained, tokenizer_path
        )
        net = model or load_net(path)
        net.vision.to(self.dtype)
        net.text.to(self.dtype)
        self.hold(net)
        side = net.vision.config.image_size
        # BLIP normalises pixels by the same mean and deviation as CLIP.
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        parts = [self._raw(images[c], prompts[c]) for c in chunks(len(images), self.batch_size)]
        return (torch.cat(parts) - MEAN) / STD

    def _raw(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        ids, mask = self.tokens(self.tokenizer, prompts, CONTEXT)
        return self.model(self.pixels(self.processor, images), ids, mask)
