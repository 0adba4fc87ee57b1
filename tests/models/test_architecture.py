"""The published architectures on the meta device: sizes by hand, and what LoRA targets hit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from config import tp_grpo
from tests.tiny_models import settings
from tp_grpo.models import architecture, pretrained
from tp_grpo.models.policy import Policy
from tp_grpo.settings import Settings


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def meta(recipe: str, **fields: object) -> tuple[Any, Any]:
    config = tp_grpo.get_config(recipe)
    config.model.update(fields)
    config = Settings.read(config)
    shapes = architecture.read(config.model)
    return config, architecture.build(shapes, config.model)


def sizes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def embedder(inputs: int, D: int) -> int:
    """A two-layer MLP into the modulation."""
    return linear(inputs, D) + linear(D, D)


def test_sd35_medium_has_the_parameters_that_its_layers_add_up_to() -> None:
    D, head, mlp = 1536, 64, linear(1536, 4 * 1536) + linear(4 * 1536, 1536)
    block = 2 * linear(D, 6 * D) + 8 * linear(D, D) + 4 * head + 2 * mlp
    # A second attention over the image, and an image modulation of 9 D instead of 6 D.
    dual = block + 4 * linear(D, D) + 2 * head + linear(D, 3 * D)
    # The last block ends the text: a modulation of 2 D, no output projection, no MLP of the text.
    last = block - linear(D, 6 * D) + linear(D, 2 * D) - linear(D, D) - mlp
    edges = linear(16 * 2 * 2, D) + linear(4096, D) + embedder(256, D) + embedder(2048, D)
    edges += linear(D, 2 * D) + linear(D, 16 * 2 * 2)
    _, backbone = meta("pickscore_sd3")
    transformer = backbone.transformer
    assert sizes(transformer.transformer_blocks[13]) == block
    assert sizes(transformer.transformer_blocks[12]) == dual
    assert sizes(transformer.transformer_blocks[23]) == last
    assert sizes(transformer) == 13 * dual + 10 * block + last + edges == 2_243_171_520
    positions = sum(buffer.numel() for buffer in transformer.buffers())
    assert positions == 384 * 384 * D
    assert 2.4e9 < sizes(transformer) + positions < 2.5e9
    assert {parameter.device.type for parameter in transformer.parameters()} == {"meta"}


def test_flux_dev_has_the_parameters_that_its_layers_add_up_to() -> None:
    D, head = 3072, 128
    double = (
        2 * linear(D, 6 * D)
        + 8 * linear(D, D)
        + 4 * head
        + 2 * (linear(D, 4 * D) + linear(4 * D, D))
    )
    single = linear(D, 3 * D) + 3 * linear(D, D) + 2 * head + linear(D, 4 * D) + linear(5 * D, D)
    edges = (
        linear(64, D)
        + linear(4096, D)
        + 2 * embedder(256, D)
        + embedder(768, D)
        + linear(D, 2 * D)
        + linear(D, 64)
    )
    _, backbone = meta("pickscore_flux")
    assert sizes(backbone.transformer.transformer_blocks[0]) == double
    assert sizes(backbone.transformer.single_transformer_blocks[37]) == single
    assert sizes(backbone.transformer) == 19 * double + 38 * single + edges == 11_901_408_320


@pytest.mark.parametrize(
    "recipe, modules, parameters",
    [
        # Eight projections D -> D a block, without the last's to_add_out and any second attention.
        ("pickscore_sd3", 24 * 8 - 1, 32 * (24 * 8 - 1) * (1536 + 1536)),
        # And in double blocks two MLPs of D -> 4 D -> D; of single blocks the q, k and v alone.
        ("pickscore_flux", 19 * 12 + 38 * 3, 64 * 3072 * (19 * (8 * 2 + 4 * 5) + 38 * 3 * 2)),
        ("pickscore_sd35_large", 38 * 8 - 1, 32 * (38 * 8 - 1) * 2 * 2432),
        # Single blocks: D -> 3 D of attention and 2 x 3 D of a gated MLP, and D + 3 D -> D.
        ("pickscore_klein", 5 * 8 + 20 * 2, 64 * 3072 * (5 * 8 * 2 + 20 * (10 + 5))),
        # 30 layers and 2 + 2 refiners: four projections, and a gated MLP of 8/3 D.
        ("pickscore_zimage", 34 * 7, 64 * 34 * (4 * 2 * 3840 + 3 * (3840 + 10240))),
        # Eight projections and two MLPs of D -> 4 D -> D.
        # The last block's text is not read: no projection of its attention, no MLP.
        ("pickscore_qwen", 60 * 12 - 3, 64 * 3072 * (60 * (8 * 2 + 4 * 5) - 2 - 2 * 5)),
    ],
)
def test_the_published_lora_targets_hit_these_modules(
    recipe: str, modules: int, parameters: int
) -> None:
    config, backbone = meta(recipe)
    lora = config.lora
    policy = Policy(
        backbone.transformer,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=backbone.lora_targets,
        kl=True,
        frozen=backbone.frozen,
    )
    assert len(policy.parameters) == 2 * modules
    assert sum(p.numel() for p in policy.parameters.values()) == parameters
    assert not any("attn2" in name for name in policy.parameters)
    for target in backbone.lora_targets:
        assert any(f".{target}.lora_A" in name for name in policy.parameters), target


def test_a_target_that_hits_nothing_is_an_error() -> None:
    _, backbone = meta("shapes_tiny")
    with pytest.raises(
        ValueError, match=r"no module of the transformer is called ff_context.net.7"
    ):
        Policy(
            backbone.transformer,
            rank=4,
            alpha=4,
            targets=("attn.to_q", "ff_context.net.7"),
            kl=True,
        )


def test_the_text_encoders_have_the_sizes_that_ship() -> None:
    with architecture.META:
        small, large = (
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
            )
            for width, layers in ((768, 12), (1280, 32))
        )
        xxl = T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        clip_l, clip_g, t5 = (
            CLIPTextModelWithProjection(small),
            CLIPTextModelWithProjection(large),
            T5EncoderModel(xxl),
        )
        qwen3 = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151936,
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
        rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
        words = {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": rope,
        }
        sight = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420}
        sight |= {"num_heads": 16, "out_hidden_size": 3584}
        qwen25 = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=words, vision_config=sight)
        )
        expected = {
            "klein": {"text_encoder": sizes(qwen3)},
            "zimage": {"text_encoder": sizes(qwen3)},
            "qwen": {"text_encoder": sizes(qwen25)},
            "flux": {"text_encoder": sizes(CLIPTextModel(small)), "text_encoder_2": sizes(t5)},
            "sd3": {
                "text_encoder": sizes(clip_l),
                "text_encoder_2": sizes(clip_g),
                "text_encoder_3": sizes(t5),
            },
        }
    for entry in pretrained.published().values():
        assert entry["text_encoders"] == expected[entry["type"]], entry["hub_id"]


@pytest.mark.parametrize(
    "recipe, billions",
    [
        ("pickscore_sd35_large", 8.057),
        ("pickscore_klein", 3.8755),
        ("pickscore_zimage", 6.155),
        ("pickscore_qwen", 20.430),
    ],
)
def test_the_other_models_have_the_sizes_that_their_cards_say(recipe: str, billions: float) -> None:
    """8.1, 4, 6 and 20 billion there."""
    _, backbone = meta(recipe)
    assert sizes(backbone.transformer) == pytest.approx(billions * 1e9, rel=1e-4)


def test_a_folder_is_read_by_its_own_configs(random_sd3: Path, random_flux: Path) -> None:
    sd3 = architecture.read(settings(random_sd3, "sd3"))
    encoder = CLIPTextModelWithProjection.from_pretrained(random_sd3 / "text_encoder")
    assert sd3.text_encoders["text_encoder"] == sizes(encoder)
    assert len(sd3.text_encoders) == 3
    model = settings(random_flux, "flux")
    shapes = architecture.read(model)
    backbone = architecture.build(shapes, model)
    assert backbone.latent_shape == (
        24 * 24 // 4,
        16,
    )  # a VAE of scale 2, four latent pixels a token
    cond = architecture.conditions(shapes, model, 2)
    assert cond.embeds.shape == (2, 12, 128)
    assert cond.pooled.shape == (2, 32)


def test_what_cannot_be_known_or_served_is_refused(random_sd3: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"'some/model' is no local folder, .* known: Qwen/Qwen-Image, .*FLUX.1-dev, ",
    ):
        meta("pickscore_sd3", path="some/model")
    with pytest.raises(
        ValueError, match=r"model.type = 'sd3', but black-forest-labs/FLUX.1-dev is a 'flux'"
    ):
        meta("pickscore_sd3", path="black-forest-labs/FLUX.1-dev")
    with pytest.raises(ValueError, match=r"'sdxl' is not one of sd3, flux"):
        meta("pickscore_sd3", type="sdxl")
    with pytest.raises(ValueError, match=r"model.height = 520 is not a multiple of 16"):
        meta("pickscore_sd3", height=520)
    with pytest.raises(
        ValueError, match=r"holds a StableDiffusion3Pipeline; this model.type needs a FluxPipeline"
    ):
        architecture.read(settings(random_sd3, "flux"))
