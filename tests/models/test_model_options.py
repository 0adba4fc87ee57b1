"""What saves memory or time changes nothing but its cost."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import CPU, PROMPTS, ode, settings
from tp_grpo import models
from tp_grpo.models import text
from tp_grpo.models.policy import Policy
from tp_grpo.store import files

Load = Callable[..., Any]


def lora(backbone: Any) -> Policy:
    torch.manual_seed(0)
    policy = Policy(backbone.transformer, rank=4, alpha=8, targets=backbone.lora_targets, kl=False)
    for parameter in policy.parameters.values():
        parameter.data.normal_(std=0.1)
    return policy


def gradients(backbone: Any) -> tuple[Tensor, dict[str, Tensor]]:
    policy = lora(backbone)
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    v = backbone.velocity(x, torch.tensor(0.5), backbone.encode(PROMPTS), 2.0)
    v.square().mean().backward()
    return v.detach(), {
        name: p.grad.clone() for name, p in policy.parameters.items() if p.grad is not None
    }


def saved_bytes(backbone: Any) -> int:
    """What autograd keeps of one forward pass, without the parameters, which are there anyway."""
    policy, kept = lora(backbone), {}
    parameters = {p.untyped_storage().data_ptr() for p in backbone.transformer.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    assert policy.parameters
    x, cond = torch.randn(2, *backbone.latent_shape), backbone.encode(PROMPTS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
    assert alive.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"compile": "aot_eager"}])
def test_velocity_and_gradients_are_the_same(load: Load, option: dict) -> None:
    v, plain = gradients(load())
    with_option, other = gradients(load(**option))
    torch.testing.assert_close(with_option, v, rtol=1e-5, atol=1e-6)
    assert plain.keys() == other.keys()
    assert plain
    for name, gradient in plain.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


def test_compile_compiles_the_blocks(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, backend: compiled.append(type(self).__name__)
    )
    load(compile="inductor")
    assert compiled
    assert set(compiled) <= {
        "JointTransformerBlock",
        "FluxTransformerBlock",
        "FluxSingleTransformerBlock",
    }
    assert len(compiled) == 4


def test_gradient_checkpointing_keeps_less(load: Load) -> None:
    assert saved_bytes(load(gradient_checkpointing=True)) < 0.5 * saved_bytes(load())


def test_an_attention_backend_gives_the_same_velocity(
    random_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers makes it the process' default as well: the tests that follow need the old one.
    registry = attention_dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    plain, other = (
        models.load(settings(random_flux, "flux", attention_backend=n), CPU)
        for n in ("", "_native_math")
    )
    torch.testing.assert_close(ode(other, 2.0), ode(plain, 2.0), rtol=1e-4, atol=1e-5)
    chosen = {
        str(m.processor._attention_backend)
        for m in other.transformer.modules()
        if hasattr(m, "processor")
    }
    assert len(chosen) == 1
    assert "math" in chosen.pop().lower()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_decoding_in_chunks_gives_the_same_images(load: Load, chunk: int) -> None:
    backbone, whole = load(decode_batch_size=chunk), load(decode_batch_size=8)
    x = torch.randn(5, *backbone.latent_shape)
    torch.testing.assert_close(backbone.decode(x), whole.decode(x), rtol=0, atol=1e-5)


def test_a_vae_in_bf16_is_close_and_gives_fp32_images(load: Load) -> None:
    exact, rough = load(), load(vae_dtype="bf16")
    x = torch.randn(1, *exact.latent_shape)
    assert rough.pipeline.vae.dtype == torch.bfloat16
    assert rough.decode(x).dtype == torch.float32
    assert 0 < (rough.decode(x) - exact.decode(x)).abs().mean() < 0.02


@pytest.mark.parametrize("mode", ["offload", "resident", "drop"])
def test_the_encoders_placement_changes_no_condition(load: Load, mode: str, tmp_path: Path) -> None:
    expected, backbone = (
        load().encode(PROMPTS),
        load(text_encoders=mode, embeddings_cache=str(tmp_path)),
    )
    for _ in range(2):
        assert torch.equal(backbone.encode(PROMPTS).embeds, expected.embeds)
        assert torch.equal(backbone.encode(PROMPTS[::-1]).pooled, expected.pooled.flip(0))
    held = backbone.text._pipeline
    assert (held is None) == (mode == "drop")
    assert backbone.pipeline.text_encoder is None, "they must not come with the transformer"


def counted(backbone: Any) -> list[str]:
    seen: list[str] = []
    encode = backbone.text.encode
    backbone.text.encode = lambda text, prompts, device: (
        seen.extend(prompts) or encode(text, prompts, device)
    )
    return seen


def test_the_cache_spares_the_encoders_and_gives_the_same(load: Load, tmp_path: Path) -> None:
    first = load(embeddings_cache=str(tmp_path))
    expected = first.encode(PROMPTS)
    again = load(embeddings_cache=str(tmp_path))
    seen = counted(again)
    assert torch.equal(again.encode(PROMPTS).embeds, expected.embeds)
    assert seen == []
    assert again.text._pipeline is None, "encoders that are not needed are not loaded"
    other = load(embeddings_cache=str(tmp_path), max_sequence_length=10)
    seen = counted(other)
    other.encode(PROMPTS)
    assert set(PROMPTS) <= set(seen), "another length is another embedding"


def test_another_models_cache_is_not_used(random_sd3: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    models.load(settings(random_sd3, "sd3", embeddings_cache=str(cache)), CPU).encode(PROMPTS)
    tuned = models.load(settings(random_sd3, "sd3"), CPU)
    tuned.text.fill([""])
    pipeline = type(tuned.pipeline).from_pretrained(random_sd3)
    pipeline.text_encoder.text_projection.weight.data[0, 0] += 1
    pipeline.save_pretrained(tmp_path / "tuned")
    backbone = models.load(settings(tmp_path / "tuned", "sd3", embeddings_cache=str(cache)), CPU)
    seen = counted(backbone)
    backbone.encode(PROMPTS)
    assert set(PROMPTS) <= set(seen)


def test_a_damaged_embedding_is_encoded_again(load: Load, tmp_path: Path) -> None:
    expected = load(embeddings_cache=str(tmp_path)).encode(PROMPTS)
    for file in tmp_path.rglob("*.safetensors"):
        assert load_file(file)
        file.write_bytes(file.read_bytes()[:100])
    backbone = load(embeddings_cache=str(tmp_path))
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(backbone.encode(PROMPTS).embeds, expected.embeds)


def test_a_cache_that_cannot_be_a_folder_is_refused_before_weights_load(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "empty").mkdir()
    held = tmp_path / "held" / "ab"
    held.mkdir(parents=True)
    (held / "abcd.safetensors").touch()

    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(text.tempfile, "TemporaryFile", refuse)
    for folder, reason in (
        (file, f"{file} is no folder"),
        (file / "below", f"{file} is no folder"),
        (tmp_path / "new", rf"{tmp_path} cannot be written \(Permission denied\)"),
        (tmp_path / "empty", rf"{tmp_path}/empty cannot be written \(Permission denied\)"),
    ):
        with pytest.raises(
            ValueError, match=f"model.embeddings_cache = '{folder}': {reason}; name"
        ):
            load(embeddings_cache=str(folder))
    load(embeddings_cache=str(held.parent))  # read-only, it may hold all prompts


def test_a_cache_that_only_seems_writable_is_refused_before_weights_load(load: Load) -> None:
    with pytest.raises(ValueError, match=r"embeddings_cache = '/proc': /proc cannot be written \("):
        load(embeddings_cache="/proc")


def test_an_embedding_that_cannot_be_read_or_written_is_named(load: Load, tmp_path: Path) -> None:
    load(embeddings_cache=str(tmp_path)).encode(PROMPTS)
    for parent in {file.parent for file in tmp_path.rglob("*.safetensors")}:
        shutil.rmtree(parent)
        parent.touch()
    with pytest.raises(OSError) as error:
        load(embeddings_cache=str(tmp_path)).encode(PROMPTS)
    words = files.in_words(error.value)
    place = rf"{tmp_path}/../.*\.safetensors: cannot be written \(.*\)"
    assert re.fullmatch(rf"{place}; name another model\.embeddings_cache", words)


def test_an_embedding_without_the_right_to_read_it_is_encoded_again(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(embeddings_cache=str(tmp_path)).encode(PROMPTS)

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(text, "load_file", forbidden)
    with pytest.warns(UserWarning, match="Permission denied.*; the prompt is encoded again"):
        again = load(embeddings_cache=str(tmp_path)).encode(PROMPTS)
    assert torch.equal(again.embeds, expected.embeds)
