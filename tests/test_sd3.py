"""The SD3 backbone against the stock pipeline, on random weights of the real classes loaded from disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from ml_collections import ConfigDict

from config import base
from tp_grpo import models, sampler
from tp_grpo.models import lora
from tp_grpo.rollout import velocity_of
from tp_grpo.types import index

PROMPTS = ["a red circle", "a green triangle above a purple square"]


def settings(path: Path, **fields: object) -> ConfigDict:
    config = base.get_config().model
    config.update({"path": str(path), "dtype": "fp32", "height": 48, "width": 48, "max_sequence_length": 12, **fields})
    return config


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("size", [(48, 48), (32, 48)])
def test_ode_images_equal_the_stock_pipelines(random_sd3: Path, guidance: float, size: tuple[int, int]) -> None:
    backbone = models.load(settings(random_sd3, height=size[0], width=size[1]), torch.device("cpu"))
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    sigmas = backbone.sigmas(7)
    with torch.no_grad():
        clean = sampler.ode(velocity_of(backbone, sigmas, backbone.encode(PROMPTS), guidance), noise, sigmas)
    pipeline = StableDiffusion3Pipeline.from_pretrained(random_sd3)
    stock = pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=7,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        max_sequence_length=12,
        output_type="np",
    ).images
    ours = backbone.decode(clean).permute(0, 2, 3, 1)
    assert (ours - torch.from_numpy(stock)).abs().max() < 1e-4
    assert ours.std() > 0.05, "flat images would agree by chance"


def test_sigmas_are_the_schedulers_own(random_sd3: Path) -> None:
    backbone = models.load(settings(random_sd3), torch.device("cpu"))
    sigmas = backbone.sigmas(10)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (11,)
    torch.testing.assert_close(sigmas[:-1], torch.linspace(1, 0.001, 10))
    assert sigmas[0] == 1 and sigmas[-1] == 0


def test_lora_starts_as_the_base_can_be_disabled_and_loads_back(random_sd3: Path, tmp_path: Path) -> None:
    backbone = models.load(settings(random_sd3), torch.device("cpu"))
    cond, x = backbone.encode(PROMPTS), torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        base_velocity = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
        lora.add(backbone.transformer, rank=4, alpha=8, targets=backbone.lora_targets)
        assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), base_velocity)
        for parameter in lora.parameters(backbone.transformer).values():
            parameter.normal_(std=0.1)
        tuned = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
        assert not torch.allclose(tuned, base_velocity, atol=1e-3)
        with lora.disabled(backbone.transformer):
            assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), base_velocity)
    assert all(p.requires_grad for p in lora.parameters(backbone.transformer).values())
    # Four layers; the last one's context has no output projection.
    assert len(lora.parameters(backbone.transformer)) == 2 * (4 * 8 - 1)
    backbone.save_lora(tmp_path)
    other = models.load(settings(random_sd3), torch.device("cpu"))
    other.pipeline.load_lora_weights(tmp_path)  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(other.velocity(x, torch.tensor(0.5), cond, 1.0), tuned)


def test_conditions_are_indexed_by_sample(random_sd3: Path) -> None:
    backbone = models.load(settings(random_sd3), torch.device("cpu"))
    both, second = backbone.encode(PROMPTS), backbone.encode(PROMPTS[1:])
    torch.testing.assert_close(index(both, torch.tensor([1])).embeds, second.embeds)
    torch.testing.assert_close(index(both, torch.tensor([1])).pooled, second.pooled)


def test_a_folder_that_is_not_whole_is_refused_by_name(random_sd3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(random_sd3, folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"transformer/ holds no .safetensors weights"):
        models.load(settings(folder), torch.device("cpu"))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ValueError, match=r"its text_encoder_2 \(CLIPTextModelWithProjection\) is missing"):
        models.load(settings(folder), torch.device("cpu"))
    index_file = folder / "model_index.json"
    index_file.write_text(index_file.read_text().replace("StableDiffusion3Pipeline", "FluxPipeline"))
    with pytest.raises(ValueError, match=r"holds a FluxPipeline; this model.type needs a StableDiffusion3Pipeline"):
        models.load(settings(folder), torch.device("cpu"))
