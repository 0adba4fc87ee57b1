"""What every family's backbone must do: the same tests for all, by their tiny checkpoints.

A new family gets them all by its entry in `tests/tiny_families.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_families import FAMILIES, Family, lora
from tests.tiny_models import CPU, PROMPTS, ode, settings
from tp_grpo import models
from tp_grpo.models import architecture, families
from tp_grpo.models.conditions import encode_once
from tp_grpo.models.policy import Policy
from tp_grpo.types import index


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda name: FAMILIES[name].save(tmp_path_factory.mktemp(name)))


@pytest.fixture
def folder(name: str, checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(name)


def noise(backbone: Any, rows: int = 2) -> Tensor:
    return torch.randn(rows, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_tiny_checkpoint() -> None:
    assert {family.type for family in FAMILIES.values()} == set(families.FAMILIES)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("size", [(48, 48), (32, 48)])
def test_ode_images_equal_the_stock_pipelines(
    family: Family, folder: Path, guidance: float, size: tuple[int, int]
) -> None:
    backbone = family.load(folder, height=size[0], width=size[1])
    ours = backbone.decode(ode(backbone, guidance, steps=7))
    stock = family.draw(family.stock(folder), noise(backbone), guidance, 7, size)
    assert ours.shape == (2, 3, *size)
    assert (ours - stock).abs().max() < 1e-4
    flat = "flat images would agree by chance"
    assert ours.std() > 0.02 and (ours[0] - ours[1]).std() > 0.02, flat


def test_guidance_changes_the_velocity_and_1_is_none(family: Family, folder: Path) -> None:
    backbone = family.load(folder)
    cond, x, sigma = backbone.encode(PROMPTS), noise(backbone), torch.tensor(0.7)
    with torch.no_grad():
        one, more = (backbone.velocity(x, sigma, cond, scale) for scale in (1.0, 3.5))
        plain = backbone.predict(x, sigma.expand(2), cond, 1.0).float()
    assert torch.equal(one, plain)
    assert (more - one).abs().mean() > 1e-4


def test_a_prompt_has_the_same_velocity_alone_and_beside_a_longer_one(
    family: Family, folder: Path
) -> None:
    backbone = family.load(folder)
    both, x = backbone.encode(PROMPTS), noise(backbone)
    for scale in (1.0, 3.0):
        with torch.no_grad():
            together = backbone.velocity(x, torch.tensor(0.6), both, scale)
            for row, prompt in enumerate(PROMPTS):
                alone = backbone.encode([prompt])
                v = backbone.velocity(x[row : row + 1], torch.tensor(0.6), alone, scale)
                torch.testing.assert_close(v[0], together[row], rtol=0, atol=2e-5)


def test_a_condition_does_not_depend_on_the_others_in_its_call(
    family: Family, folder: Path
) -> None:
    backbone = family.load(folder)
    both = backbone.encode([*PROMPTS, *PROMPTS])
    for prompt, row in zip(PROMPTS, (2, 3), strict=True):
        alone, among = backbone.encode([prompt]), index(both, torch.tensor([row]))
        for field in dataclasses.fields(alone):
            own, padded = getattr(alone, field.name), getattr(among, field.name)
            if own.ndim > 1:
                assert not padded[:, own.shape[1] :].any(), "what is filled up is zero"
                padded = padded[:, : own.shape[1]]
            assert torch.equal(own, padded), field.name


def test_what_a_run_keeps_of_a_prompt_does_not_depend_on_what_came_with_it(
    family: Family, folder: Path
) -> None:
    """Also the empty prompt of guidance; so a resumed run has the same bits."""
    one, other = family.load(folder), family.load(folder)
    alone, among = encode_once(one, PROMPTS[:1]), encode_once(other, PROMPTS)
    pairs = [(alone[PROMPTS[0]], among[PROMPTS[0]])]
    if one.classifier_free:
        pairs.append((one.empty, other.empty))
    for a, b in pairs:
        for field in dataclasses.fields(a):
            assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_samples_at_different_sigmas_share_a_call(family: Family, folder: Path) -> None:
    backbone = family.load(folder)
    cond, sigmas, x = backbone.encode(PROMPTS), backbone.sigmas(4), noise(backbone)
    with torch.no_grad():
        together = backbone.velocity(x, sigmas[torch.tensor([1, 3])], cond, 3.0)
        for row, step in enumerate((1, 3)):
            apart = backbone.velocity(x, sigmas[step], cond, 3.0)[row]
            torch.testing.assert_close(together[row], apart, rtol=0, atol=2e-5)
        assert (together[0] - backbone.velocity(x, sigmas[3], cond, 3.0)[0]).abs().max() > 1e-3


def test_sigma_falls_from_1_to_0(family: Family, folder: Path) -> None:
    sigmas = family.load(folder).sigmas(6)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (7,)
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_unmoved_policy_repeats_sampling_bit_for_bit(
    family: Family, folder: Path, dtype: str
) -> None:
    """So that the first update's ratios are exactly 1."""
    backbone = family.load(folder, gradient_checkpointing=True, dtype=dtype)
    policy = lora(backbone)
    cond, x = backbone.encode(PROMPTS), noise(backbone)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        with torch.no_grad():
            sampled = backbone.velocity(x, torch.tensor(0.5), cond, 2.0)
        trained = backbone.velocity(x, torch.tensor(0.5), cond, 2.0)
        assert trained.requires_grad and trained.dtype == torch.float32
        assert torch.equal(trained, sampled) and sampled.isfinite().all()
        trained.square().mean().backward()
    gradients = [p.grad for p in policy.parameters.values() if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(g.isfinite().all() for g in gradients)


def test_compiled_blocks_give_the_same_velocity(family: Family, folder: Path) -> None:
    """By the tracer alone; kernels are the compiler's matter."""
    plain, compiled = family.load(folder), family.load(folder, compile="aot_eager")
    cond, x = plain.encode(PROMPTS), noise(plain)
    with torch.no_grad():
        v, same = (b.velocity(x, torch.tensor(0.5), cond, 2.0) for b in (plain, compiled))
    torch.testing.assert_close(same, v, rtol=0, atol=1e-5)


def test_prompts_from_the_cache_on_disk_are_the_same_bits(
    family: Family, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = family.load(folder).encode(PROMPTS)
    family.load(folder, embeddings_cache=str(tmp_path)).encode_ahead(PROMPTS)
    pipeline = families.adapter(family.type).pipeline_class
    cached = family.load(folder, embeddings_cache=str(tmp_path))
    monkeypatch.setattr(
        pipeline, "from_pretrained", lambda *_, **__: pytest.fail("the encoders were loaded")
    )
    read = cached.encode(PROMPTS)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}, "colleagues may read them"
    for field in dataclasses.fields(fresh):
        assert torch.equal(getattr(read, field.name), getattr(fresh, field.name)), field.name


def test_every_target_is_hit_and_learns(family: Family, folder: Path) -> None:
    """In some block; what the last one does to the text has no part in the image."""
    backbone = family.load(folder)
    policy = lora(backbone)
    x, cond = noise(backbone), backbone.encode(PROMPTS)
    backbone.velocity(x, torch.tensor(0.5), cond, 2.0).square().mean().backward()
    learning: dict[str, int] = dict.fromkeys(backbone.lora_targets, 0)
    for name, parameter in policy.parameters.items():
        module = name.rsplit(".lora_", 1)[0]
        (target,) = [t for t in learning if f".{module}".endswith(f".{t}")]
        learning[target] += bool(parameter.grad is not None and parameter.grad.any())
    assert min(learning.values()) > 0, learning


@pytest.mark.parametrize("rank", [4, 0])
def test_every_trained_parameter_has_a_gradient(family: Family, folder: Path, rank: int) -> None:
    """Or the processes of DDP would wait for it; what has no part in the velocity is frozen."""
    backbone = family.load(folder)
    policy = Policy(
        backbone.transformer,
        rank=rank,
        alpha=8,
        targets=backbone.lora_targets,
        kl=False,
        frozen=backbone.frozen,
    )
    v = backbone.velocity(noise(backbone), torch.tensor(0.5), backbone.encode(PROMPTS), 2.0)
    v.square().mean().backward()
    without = [name for name, p in policy.parameters.items() if p.grad is None]
    assert not without
    for name in backbone.frozen:
        module = backbone.transformer.get_submodule(name)
        assert not any(p.requires_grad for p in module.parameters()), name


@pytest.mark.parametrize("rank", [4, 0])
def test_the_base_comes_back_inside_reference(family: Family, folder: Path, rank: int) -> None:
    backbone = family.load(folder)
    x, cond = noise(backbone), backbone.encode(PROMPTS)
    with torch.no_grad():
        base = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
        policy = Policy(
            backbone.transformer, rank=rank, alpha=8, targets=backbone.lora_targets, kl=True
        )
        for parameter in policy.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape)
        tuned = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
        assert not torch.allclose(tuned, base, atol=1e-3)
        with policy.reference():
            assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), base)
        assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), tuned)


def test_an_exported_lora_draws_the_same_in_the_stock_pipeline_and_under_peft(
    family: Family, folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    backbone = family.load(folder)
    base = backbone.decode(ode(backbone, 2.0, steps=3))
    policy = lora(backbone)
    ours = backbone.decode(ode(backbone, 2.0, steps=3))
    assert (ours - base).abs().max() > 10 / 255
    backbone.export(policy, policy.parameters, tmp_path)
    pipeline = family.stock(folder)
    pipeline.load_lora_weights(tmp_path)
    wrapped = family.stock(folder)
    wrapped.transformer = PeftModel.from_pretrained(
        wrapped.transformer, tmp_path
    ).merge_and_unload()
    for stock in (pipeline, wrapped):
        drawn = family.draw(stock, noise(backbone), 2.0, 3, (48, 48))
        assert (drawn - ours).abs().max() < 1e-4
    again = family.load(folder)
    models.export.load(again.transformer, tmp_path)
    assert torch.equal(again.decode(ode(again, 2.0, steps=3)), ours)


def test_prompts_that_are_cut_are_counted_once(family: Family, folder: Path) -> None:
    backbone, words = family.load(folder), "a red circle above a green square " * 20
    with pytest.warns(UserWarning, match=r"^2 of 3 prompts are longer than .*the longest has \d+ "):
        backbone.encode([PROMPTS[0], words, words + "!"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        backbone.encode([words + "?"])
        family.load(folder).encode(PROMPTS)


def test_a_precision_that_overflows_is_refused(family: Family, folder: Path) -> None:
    model = settings(folder, family.type, dtype="fp16", max_sequence_length=family.tokens)
    if "fp16" in families.adapter(family.type).dtypes:
        assert architecture.read(model)
        return
    with pytest.raises(ValueError, match="whose range fp16 does not have; use fp32 or bf16"):
        architecture.read(model)


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_file_names_with_a_variant_load_whole_or_in_shards(
    family: Family, folder: Path, tmp_path: Path, shard: str
) -> None:
    family.stock(folder).save_pretrained(tmp_path, variant="fp16", max_shard_size=shard)
    names = {path.name for path in (tmp_path / "transformer").iterdir()}
    assert not {name for name in names if name.endswith("_model.safetensors")}, names
    ours = ode(family.load(tmp_path), 2.0, steps=2)
    assert torch.equal(ours, ode(family.load(folder), 2.0, steps=2))
    model = settings(tmp_path, family.type, max_sequence_length=family.tokens)
    plain = settings(folder, family.type, max_sequence_length=family.tokens)
    counted = architecture.read(model).text_encoders
    assert counted == architecture.read(plain).text_encoders


def test_a_single_file_is_refused_with_what_to_do(family: Family, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    pipeline = families.adapter(family.type).pipeline_class
    words = "download the model's folder"
    if hasattr(pipeline, "from_single_file"):
        words = f"from diffusers import {pipeline.__name__}; .*save_pretrained"
    with pytest.raises(ValueError, match=f"is a single file; a model is a folder .*{words}"):
        family.load(file)


def test_a_folder_that_lacks_a_part_is_refused_before_weights_load(
    family: Family, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = families.adapter(family.type).pipeline_class
    monkeypatch.setattr(
        pipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    for part, message in {
        "transformer/diffusion_pytorch_model.safetensors": r"model.safetensors is missing; was the",
        "text_encoder/model.safetensors": r"text_encoder/model.safetensors is missing",
        "vae/config.json": "vae/config.json is missing",
        "text_encoder": r"text_encoder/ \(\w+\) is missing; fetch that folder",
    }.items():
        copy = tmp_path / part.replace("/", "-")
        shutil.copytree(folder, copy)
        gone = copy / part
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(ValueError, match=message):
            family.load(copy)


def test_a_folder_of_another_class_is_refused_with_both_names(
    family: Family, checkpoint: Callable[[str], Path]
) -> None:
    mine = families.adapter(family.type).pipeline_class.__name__
    other = next(other for other in FAMILIES.values() if other.type != family.type)
    theirs = families.adapter(other.type).pipeline_class.__name__
    name = next(name for name, known in FAMILIES.items() if known is other)
    with pytest.raises(ValueError, match=f"holds a {theirs}; this model.type needs a {mine}"):
        family.load(checkpoint(name))


def test_a_size_that_does_not_fit_names_the_nearest(family: Family, folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model.height = 50 is not a multiple of [48] .* 48 and 5[26]"
    ):
        family.load(folder, height=50)
    with pytest.raises(ValueError, match=r"takes at most \d+"):
        family.load(folder, max_sequence_length=5000)


def test_its_shapes_are_known_without_weights(family: Family, folder: Path) -> None:
    """What `scripts/estimate.py` counts with has the shapes of what runs."""
    model = settings(folder, family.type, max_sequence_length=family.tokens)
    shapes = architecture.read(model)
    ghost, real = architecture.build(shapes, model), family.load(folder)
    assert ghost.latent_shape == real.latent_shape
    assert sum(p.numel() for p in ghost.transformer.parameters()) == sum(
        p.numel() for p in real.transformer.parameters()
    )
    made, encoded = architecture.conditions(shapes, model, 2, CPU), real.encode(PROMPTS)
    for field in dataclasses.fields(made):
        like, own = getattr(made, field.name), getattr(encoded, field.name)
        assert like.dtype == own.dtype and like.ndim == own.ndim, field.name
        assert like.shape[2:] == own.shape[2:], field.name
    x = torch.randn(2, *ghost.latent_shape, device="meta")
    random = architecture.build(shapes, model, CPU)
    v = random.velocity(noise(real), torch.tensor(0.5), made, 2.0)
    assert v.shape == x.shape and v.isfinite().all()
