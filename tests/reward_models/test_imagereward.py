"""ImageReward: the names and shapes of the published file, and its arithmetic by the papers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, unfold

from reward_models import build, imagereward
from reward_models.imagereward import ImageReward, RewardNet, renamed
from tests.reward_models import tiny

State = dict[str, Tensor]
PUBLISHED_VISION, PUBLISHED_TEXT = imagereward.VISION, imagereward.TEXT
TINY = {
    "vision": 128,
    "blocks": 2,
    "side": 64,
    "text": 64,
    "layers": 2,
    "inner": 96,
    "words": 120,
    "positions": 40,
}
FULL = {
    "vision": 1024,
    "blocks": 24,
    "side": 224,
    "text": 768,
    "layers": 12,
    "inner": 3072,
    "words": 30524,
}


def linears(shapes: dict[str, tuple[int, ...]], name: str, inputs: int, outputs: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)


def published_shapes(
    vision: int,
    blocks: int,
    side: int,
    text: int,
    layers: int,
    inner: int,
    words: int,
    positions: int = 512,
) -> dict[str, tuple[int, ...]]:
    """Every tensor of ImageReward.pt: BLIP's ViT, with timm's names, its text encoder, the head."""
    shapes: dict[str, tuple[int, ...]] = {}
    eye = "blip.visual_encoder."
    shapes[eye + "cls_token"] = (1, 1, vision)
    shapes[eye + "pos_embed"] = (1, (side // 16) ** 2 + 1, vision)
    shapes[eye + "patch_embed.proj.weight"], shapes[eye + "patch_embed.proj.bias"] = (
        (vision, 3, 16, 16),
        (vision,),
    )
    norms = [eye + "norm"]
    for i in range(blocks):
        block = f"{eye}blocks.{i}."
        norms += [block + "norm1", block + "norm2"]
        linears(shapes, block + "attn.qkv", vision, 3 * vision)
        linears(shapes, block + "attn.proj", vision, vision)
        linears(shapes, block + "mlp.fc1", vision, 4 * vision)
        linears(shapes, block + "mlp.fc2", 4 * vision, vision)
    shapes.update({f"{norm}.{part}": (vision,) for norm in norms for part in ("weight", "bias")})
    text_shapes(shapes, vision, text, layers, inner, words, positions)
    linears(shapes, "blip.vision_proj", vision, 256)
    linears(shapes, "blip.text_proj", text, 256)
    widths = (text, 1024, 128, 64, 16, 1)
    for i, number in enumerate((0, 2, 4, 6, 7)):
        linears(shapes, f"mlp.layers.{number}", widths[i], widths[i + 1])
    return shapes


def text_shapes(
    shapes: dict[str, tuple[int, ...]],
    vision: int,
    text: int,
    layers: int,
    inner: int,
    words: int,
    positions: int,
) -> None:
    med = "blip.text_encoder."
    shapes[med + "embeddings.position_ids"] = (1, positions)
    shapes[med + "embeddings.word_embeddings.weight"] = (words, text)
    shapes[med + "embeddings.position_embeddings.weight"] = (positions, text)
    norms = [med + "embeddings.LayerNorm"]
    for i in range(layers):
        layer = f"{med}encoder.layer.{i}."
        for attention, width in (("attention", text), ("crossattention", vision)):
            linears(shapes, f"{layer}{attention}.self.query", text, text)
            linears(shapes, f"{layer}{attention}.self.key", width, text)
            linears(shapes, f"{layer}{attention}.self.value", width, text)
            linears(shapes, f"{layer}{attention}.output.dense", text, text)
            norms.append(f"{layer}{attention}.output.LayerNorm")
        linears(shapes, layer + "intermediate.dense", text, inner)
        linears(shapes, layer + "output.dense", inner, text)
        norms.append(layer + "output.LayerNorm")
    shapes.update({f"{norm}.{part}": (text,) for norm in norms for part in ("weight", "bias")})


def random_state(**sizes: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {
        key: 0.1 * torch.randn(shape, generator=generator)
        for key, shape in published_shapes(**sizes).items()
    }
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(sizes["positions"])[None]
    return state


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """query (B, L, D), key and value (B, S, D), mask (B, S) of the visible positions."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    logits = q @ k.transpose(-1, -2) / (query.shape[-1] // heads) ** 0.5
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def reference(state: State, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """ImageReward's raw reward by the papers: a pre-norm ViT (eps 1e-6), a post-norm BERT (1e-12)
    with cross attention, and the head."""

    def dense(name: str, x: Tensor) -> Tensor:
        return linear(x, state[name + ".weight"], state[name + ".bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)

    eye, med = "blip.visual_encoder.", "blip.text_encoder."
    kernel = state[eye + "patch_embed.proj.weight"].flatten(1)
    patches = unfold(pixels, 16, stride=16).transpose(1, 2) @ kernel.T
    x = patches + state[eye + "patch_embed.proj.bias"]
    x = torch.cat([state[eye + "cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state[eye + "pos_embed"]
    for i in range(TINY["blocks"]):
        block = f"{eye}blocks.{i}."
        qkv = dense(block + "attn.qkv", norm(block + "norm1", x, 1e-6)).chunk(3, -1)
        x = x + dense(block + "attn.proj", attend(*qkv, heads=2))
        inner = gelu(dense(block + "mlp.fc1", norm(block + "norm2", x, 1e-6)))
        x = x + dense(block + "mlp.fc2", inner)
    image = norm(eye + "norm", x, 1e-6)

    words = state[med + "embeddings.word_embeddings.weight"][tokens]
    places = state[med + "embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(med + "embeddings.LayerNorm", words + places, 1e-12)
    for i in range(TINY["layers"]):
        layer = f"{med}encoder.layer.{i}."
        for attention in ("attention", "crossattention"):
            name = f"{layer}{attention}."
            source, visible = (y, mask) if attention == "attention" else (image, None)
            query = dense(name + "self.query", y)
            key, value = dense(name + "self.key", source), dense(name + "self.value", source)
            attended = dense(name + "output.dense", attend(query, key, value, 1, visible))
            y = norm(name + "output.LayerNorm", y + attended, 1e-12)
        inner = dense(layer + "output.dense", gelu(dense(layer + "intermediate.dense", y)))
        y = norm(layer + "output.LayerNorm", y + inner, 1e-12)
    out = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        out = dense(f"mlp.layers.{number}", out)
    return out.squeeze(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageReward.pt and a BERT tokenizer."""
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(random_state(**TINY), folder / "ImageReward.pt")
    return tiny.save_bert_tokenizer(folder, TINY["words"])


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """RewardNet has the sizes of that file instead of the published ones."""
    vision = {
        "hidden_size": TINY["vision"],
        "intermediate_size": 4 * TINY["vision"],
        "num_hidden_layers": TINY["blocks"],
        "num_attention_heads": 2,
        "image_size": TINY["side"],
    }
    text = {
        "vocab_size": TINY["words"],
        "bos_token_id": TINY["words"] - 2,
        "hidden_size": TINY["text"],
        "encoder_hidden_size": TINY["vision"],
        "intermediate_size": TINY["inner"],
        "num_hidden_layers": TINY["layers"],
        "num_attention_heads": 1,
        "max_position_embeddings": TINY["positions"],
    }
    monkeypatch.setattr(imagereward, "VISION", PUBLISHED_VISION | vision)
    monkeypatch.setattr(imagereward, "TEXT", PUBLISHED_TEXT | text)


@pytest.fixture
def scorer(folder: Path) -> ImageReward:
    return load(folder)


def load(folder: Path, **options: Any) -> ImageReward:
    return ImageReward(path=str(folder), tokenizer_path=str(folder), device="cpu", **options)


def test_every_published_tensor_has_its_place_and_none_is_left_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(imagereward, "VISION", PUBLISHED_VISION)
    monkeypatch.setattr(imagereward, "TEXT", PUBLISHED_TEXT)
    shapes = published_shapes(**FULL)
    state = renamed({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    with torch.device("meta"):
        net = RewardNet()
    expected = {key: x.shape for key, x in state.items()}
    assert {key: x.shape for key, x in net.state_dict().items()} == expected
    unread = len(shapes) - len(state)
    assert unread == 5, "the two projections' weights and biases, and the position ids"
    assert net.vision.config.num_attention_heads == 16
    assert net.text.config.num_attention_heads == 12
    assert net.vision.config.image_size == 224
    eps = {module.eps for module in net.vision.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert eps == {1e-6}, "timm's; transformers' default is 1e-5"


def test_the_net_computes_what_the_paper_says(scorer: ImageReward) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 64, 64, generator=generator)
    tokens = torch.randint(0, 120, (3, 35), generator=generator)
    mask = (torch.arange(35) < torch.tensor([35, 9, 3])[:, None]).long()
    expected = reference(random_state(**TINY), pixels, tokens, mask)
    assert expected.std() > 1e-3
    raw = scorer.model(pixels, tokens, mask)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-6)


def test_the_score_is_standardised(scorer: ImageReward) -> None:
    images = tiny.images()
    tokens = scorer.tokenizer(
        tiny.PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    pixels = scorer.processor(list(images), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (5, 3, 64, 64)
    state = random_state(**TINY)
    raw = reference(state, pixels, tokens["input_ids"], tokens["attention_mask"])
    expected = (raw - 0.16717362830052426) / 1.0333394966054072
    score = scorer(images, tiny.PROMPTS, [{}] * 5).score
    assert score == pytest.approx(expected.numpy(), abs=1e-5)


def test_permuting_and_chunking_leave_each_image_its_score(
    scorer: ImageReward, folder: Path
) -> None:
    images, order = tiny.images(), np.array([3, 0, 4, 1, 2])
    before = scorer(images, tiny.PROMPTS, [{}] * 5).score
    assert before.std() > 1e-4
    parts = load(folder, batch_size=2)
    after = parts(images[order], [tiny.PROMPTS[i] for i in order], [{}] * 5).score
    assert after == pytest.approx(before[order], abs=1e-6)
    assert after.dtype == np.float32
    assert parts(images[:0], [], []).score.shape == (0,)


def test_another_models_file_is_refused(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "ImageReward.pt"

    def load_file() -> None:
        build("imagereward", path=str(file), tokenizer_path=str(folder))

    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"do not fit RewardNet: Missing .*vision\.embeddings"):
        load_file()
    missing = "encoder.layer.1.crossattention.self.key.bias"
    state = random_state(**TINY)
    del state[f"blip.text_encoder.{missing}"]
    torch.save(state, file)
    with pytest.raises(ValueError, match=rf"do not fit RewardNet.*text\.{re.escape(missing)}"):
        load_file()


def test_half_precision_keeps_the_head_in_fp32_and_the_net_moves(
    folder: Path, scorer: ImageReward
) -> None:
    half = load(folder, dtype="bfloat16")
    assert half.model.vision.dtype == torch.bfloat16
    assert half.model.head.layers[0].weight.dtype == torch.float32
    images = tiny.images()
    whole = scorer(images, tiny.PROMPTS, [{}] * 5).score
    assert half(images, tiny.PROMPTS, [{}] * 5).score == pytest.approx(whole, abs=0.05)
    assert half.to("meta").model.head.layers[0].weight.device.type == "meta"
