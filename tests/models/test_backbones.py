"""The backbones against the stock pipelines, on random weights of the real classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from tests import tiny_models
from tests.tiny_families import FAMILIES
from tests.tiny_models import CPU, PROMPTS, ode, settings
from tp_grpo import models
from tp_grpo.models import architecture, families, pretrained
from tp_grpo.types import index

ROOT = Path(__file__).resolve().parents[2]
STOCK: dict[str, Any] = {kind: families.adapter(kind).pipeline_class for kind in families.FAMILIES}
Load = Callable[..., Any]


def stock_images(
    kind: str, path: Path, backbone: Any, guidance: float, size: tuple[int, int], steps: int
) -> Tensor:
    without = (
        {}
        if kind == "flux" or (path / "text_encoder_3").exists()
        else {"text_encoder_3": None, "tokenizer_3": None}
    )
    pipeline = STOCK[kind].from_pretrained(path, **without)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    images = pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        max_sequence_length=12,
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_flux_without_guidance_equals_the_stock_pipeline_and_warns(tmp_path: Path) -> None:
    path = tiny_models.save_flux(tmp_path, guidance_embeds=False)
    with pytest.warns(UserWarning, match="has no input for guidance: sample.guidance_scale is"):
        backbone = models.load(settings(path, "flux"), CPU)
    images = backbone.decode(ode(backbone, 3.5))
    assert (images - stock_images("flux", path, backbone, 3.5, (48, 48), 5)).abs().max() < 1e-4
    assert torch.equal(ode(backbone, 3.5), ode(backbone, 1.0)), (
        "there is nothing that guidance could act on"
    )


def test_sigmas_are_the_schedulers_own(random_sd3: Path, random_flux: Path) -> None:
    sigmas = models.load(settings(random_sd3, "sd3"), CPU).sigmas(10)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (11,)
    torch.testing.assert_close(sigmas[:-1], torch.linspace(1, 0.001, 10))
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    # 24 x 24 tokens on the line from (256, 0.5) to (4096, 1.15); exp(mu) / (exp(mu) + 1/s - 1).
    mu = 0.5 + (576 - 256) * (1.15 - 0.5) / (4096 - 256)
    even = torch.linspace(1, 1 / 6, 6, dtype=torch.float64)
    expected = torch.exp(torch.tensor(mu)) / (torch.exp(torch.tensor(mu)) + (1 / even - 1))
    flux = models.load(settings(random_flux, "flux", height=96, width=96), CPU).sigmas(6)
    torch.testing.assert_close(flux[:-1], expected.float(), rtol=1e-6, atol=1e-6)
    assert flux[-1] == 0


def test_conditions_are_indexed_by_sample_and_each_distinct_prompt_is_encoded_once(
    load: Load,
) -> None:
    backbone, seen = load(), []
    encode = backbone.text.encode
    backbone.text.encode = lambda text, prompts, device: (
        seen.extend(prompts) or encode(text, prompts, device)
    )
    both, second = backbone.encode([*PROMPTS, *PROMPTS]), backbone.encode(PROMPTS[1:])
    assert torch.equal(index(both, torch.tensor([3])).embeds, second.embeds), (
        "it must not depend on the others"
    )
    assert torch.equal(index(both, torch.tensor([1])).pooled, second.pooled)
    assert seen.count(PROMPTS[0]) == 1


def test_sd3_without_t5_equals_the_stock_pipeline(random_sd3: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        random_sd3, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.save_pretrained(tmp_path)
    backbone = models.load(settings(tmp_path, "sd3"), CPU)
    images = backbone.decode(ode(backbone, 2.0))
    assert (images - stock_images("sd3", tmp_path, backbone, 2.0, (48, 48), 5)).abs().max() < 1e-4


def test_a_second_encoder_that_is_missing_is_named(kind: str, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(path, folder)
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(
        ValueError,
        match=r"text_encoder_2/ \((CLIPTextModelWithProjection|T5EncoderModel)\) is missing",
    ):
        models.load(settings(folder, kind), CPU)


def empty_tokenizer(folder: Path) -> None:
    for file in (folder / "tokenizer_2").iterdir():
        file.unlink()


def lose_a_shard(folder: Path) -> None:
    names = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(names)
    )
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("part-1.safetensors"))


def cut(folder: Path) -> None:
    with (folder / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(2000)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            empty_tokenizer,
            "tokenizer_2 holds no vocabulary: none of tokenizer.json, vocab.json, spiece.model",
        ),
        (lose_a_shard, "transformer/part-2.safetensors is missing; was the download broken off"),
        (cut, r"vae/diffusion_pytorch_model.safetensors is damaged \(.*\); fetch it again"),
        (lambda folder: (folder / "vae" / "config.json").unlink(), "vae/config.json is missing"),
        (
            lambda folder: (folder / "vae" / "config.json").write_text("{"),
            "vae/config.json is no JSON",
        ),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
            "scheduler_config.json is missing",
        ),
        (
            lambda folder: (folder / "model_index.json").write_text("{,"),
            "model_index.json is no JSON",
        ),
    ],
)
def test_what_a_broken_download_leaves_is_refused_by_name(
    spoil: Callable[[Path], object],
    message: str,
    kind: str,
    path: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(path, folder)
    spoil(folder)
    monkeypatch.setattr(
        STOCK[kind], "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(ValueError, match=message):
        models.load(settings(folder, kind), CPU)


@pytest.mark.parametrize(
    "model, fields, message",
    [
        ("flux", {"height": 50}, r"model.height = 50 is not a multiple of 4 .* 48 and 52"),
        ("flux", {"max_sequence_length": 513}, "513: Flux takes at most 512"),
        ("sd3", {"max_sequence_length": 513}, "513: SD3 takes at most 512"),
        ("flux", {"attention_backend": "sage"}, "'sage' cannot be used: "),
        ("flux", {"attention_backend": "flashy"}, "'flashy' is not one of .*native"),
        ("sd3", {"attention_backend": "native"}, "takes no other; leave it empty"),
        ("sd3", {"text_encoders": "drop"}, "set model.embeddings_cache to a folder"),
        ("sd3", {"text_encoders": "away"}, "'away' is not one of offload, resident, drop"),
        ("sd3", {"vae_dtype": "fp8"}, "model.vae_dtype = 'fp8' is not one of"),
        ("sd3", {"compile": "gcc"}, "model.compile = 'gcc' is not one of .*inductor"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_before_weights_load(
    model: str,
    fields: dict,
    message: str,
    random_sd3: Path,
    random_flux: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        STOCK[model], "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    path = {"sd3": random_sd3, "flux": random_flux}[model]
    with pytest.raises(ValueError, match=message):
        models.load(settings(path, model, **fields), CPU)


def test_a_fill_or_control_variant_is_refused(random_flux: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(random_flux, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 16', '"in_channels": 32'))
    with pytest.raises(ValueError, match="reads 32 channels a token, and its VAE packs 4 x 4"):
        models.load(settings(folder, "flux"), CPU)


def test_a_distilled_klein_is_refused(tmp_path: Path) -> None:
    """Here and for estimates, before weights load; model_index.json says that it is."""
    family = FAMILIES["klein"]
    folder = family.save(tmp_path / "model")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"is_distilled": false', '"is_distilled": true'))
    model = settings(folder, "klein", max_sequence_length=80)
    for read in (architecture.read, lambda model: models.load(model, CPU)):
        with pytest.raises(ValueError, match=r"distilled to a few steps .* take the base checkpo"):
            read(model)


@pytest.mark.parametrize(
    "published, size",
    [("stabilityai/stable-diffusion-3.5-medium", 17), ("black-forest-labs/FLUX.1-dev", 34)],
)
def test_weights_that_are_not_there_say_what_to_download(published: str, size: int) -> None:
    message = pretrained.unreadable(published)
    assert f"about {size} GB" in message
    assert f"hf download {published}" in message
    assert "accept its licence" in message
    free = pretrained.unreadable("Qwen/Qwen-Image")
    assert "it needs the network once. To work offline" in free and "gated" not in free


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_repository_is_fetched_with_the_only_variant_that_it_has(
    saved: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str | None,
) -> None:
    """`download` is diffusers'; what it would fetch is the folder that is there."""
    StableDiffusion3Pipeline.from_pretrained(saved("sd3")).save_pretrained(
        tmp_path, variant=variant, max_shard_size="20KB"
    )
    listed = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    asked: dict[str, Any] = {}

    def download(path: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(pretrained, "list_repo_files", lambda path, revision: listed)
    monkeypatch.setattr(StableDiffusion3Pipeline, "download", download)
    fetched = pretrained.fetch(StableDiffusion3Pipeline, "someone/sd3", "main")
    assert fetched == str(tmp_path) and asked == {"revision": "main", "variant": variant}


def test_a_hub_id_is_read_from_the_local_cache_when_offline(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in tiny_models.SAVE:
        stored = tmp_path / f"models--someone--{kind}"
        shutil.copytree(saved(kind), stored / "snapshots" / ("a" * 40))
        (stored / "refs").mkdir()
        (stored / "refs" / "main").write_text("a" * 40)
    program = (
        "import sys, torch; from tests.tiny_models import settings; from tp_grpo import models\n"
        "def load(name, kind):\n"
        "    backbone = models.load(settings(f'someone/{name}', kind), torch.device('cpu'))\n"
        "    print(name, backbone.encode(['a red circle']).embeds.shape)\n"
        "for kind in sys.argv[1:]: load(kind, kind)\n"
        "load('else', 'sd3')"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *tiny_models.SAVE],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    for kind in tiny_models.SAVE:
        assert f"{kind} torch.Size([1, " in done.stdout, done.stderr
    assert "'someone/else' is neither a folder here nor a hub repository" in done.stderr
