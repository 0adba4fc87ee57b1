"""A part's tensors are compared with its class's: what is missing would get random values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_families import FAMILIES
from tests.tiny_models import settings
from tp_grpo import models
from tp_grpo.models import architecture, checkpoint_files, families, tensor_names

EMBEDDED = Path(__file__).parents[2] / "tp_grpo" / "shapes" / "weights"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    name = str(request.param)
    return name, FAMILIES[name].save(tmp_path_factory.mktemp(name))


@pytest.fixture
def sd3(random_sd3: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_sd3, tmp_path / "sd3")


def rewrite(part: Path, change: Callable[[Tensors], Tensors]) -> None:
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, file, {"format": "pt"})


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k.replace(old, new, 1): v for k, v in tensors.items()}


def test_whole_checkpoints_pass_in_silence(
    model: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    tensor_names.check(model[1])
    tensor_names.check(EMBEDDED)
    assert capfd.readouterr() == ("", "")


def test_a_tensor_that_any_part_lacks_is_named(model: tuple[str, Path], tmp_path: Path) -> None:
    path = model[1]
    parts = [part for part in checkpoint_files.components(path) if (path / part).is_dir()]
    parts = [part for part in parts if list((path / part).glob("*.safetensors"))]
    assert {"transformer", "vae", "text_encoder"} <= set(parts)
    for part in parts:
        folder = shutil.copytree(path, tmp_path / part)
        (file,) = (folder / part).glob("*.safetensors")
        lost = max(key for key in load_file(file) if not tensor_names.UNREAD.search(key))
        rewrite(folder / part, without(lost))
        end = ".".join(lost.split(".")[-2:])  # transformers may have renamed its beginning
        with pytest.raises(ValueError, match=rf"{part} lacks [12] of a .*'s tensors: .*{end}; fet"):
            tensor_names.check(folder)


def test_it_is_refused_before_weights_load(sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(sd3 / "text_encoder_2", without("text_projection.weight"))
    pipeline = families.adapter("sd3").pipeline_class
    monkeypatch.setattr(pipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(
        ValueError,
        match=r"text_encoder_2 lacks 1 of a CLIPTextModelWithProjection's tensors: "
        r"text_projection\.weight; fetch the folder again",
    ):
        models.load(settings(sd3, "sd3"), torch.device("cpu"))


def test_a_few_of_many_are_named(sd3: Path) -> None:
    kept = "text_model.embeddings.position_embedding.weight"
    rewrite(sd3 / "text_encoder", lambda tensors: {kept: tensors[kept]})
    with pytest.raises(
        ValueError, match=r"lacks 36 of a \w+'s tensors: [^,]+, [^,]+, [^,]+, \.\.;"
    ):
        tensor_names.check(sd3)


def test_a_tensor_of_another_shape_is_named(sd3: Path) -> None:
    wide = {"text_projection.weight": torch.ones(7, 7)}
    rewrite(sd3 / "text_encoder", lambda tensors: tensors | wide)
    with pytest.raises(ValueError, match=r"has in another shape 1 of .*: text_projection\.wei"):
        tensor_names.check(sd3)
    shutil.copytree(EMBEDDED / "text_encoder", sd3 / "text_encoder", dirs_exist_ok=True)
    rewrite(sd3 / "vae", lambda tensors: tensors | {"decoder.conv_in.bias": torch.ones(5)})
    with pytest.raises(ValueError, match=r"vae has in another shape 1 of .*coder\.conv_in\.bi"):
        tensor_names.check(sd3)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_lora_that_is_still_loaded_is_refused_in_words(sd3: Path, part: str) -> None:
    old, new = {
        "transformer": ("attn.to_q.weight", "attn.to_q.base_layer.weight"),
        "text_encoder": ("q_proj.weight", "q_proj.base_layer.weight"),
    }[part]
    rewrite(sd3 / part, renamed(old, new))
    with pytest.raises(
        ValueError,
        match=rf"{part} was saved with a LoRA still loaded \(.*base_layer\.weight\).*unload_lora_w",
    ):
        tensor_names.check(sd3)


@pytest.mark.parametrize(
    "family, part, change",
    [
        ("sd3", "text_encoder", renamed("text_model.", "")),
        ("flux", "text_encoder", renamed("text_model.", "")),
        ("flux", "text_encoder_2", renamed("shared.weight", "encoder.embed_tokens.weight")),
        ("klein", "text_encoder", renamed("model.", "")),
        ("zimage", "text_encoder", lambda tensors: {f"model.{k}": v for k, v in tensors.items()}),
        ("qwen", "text_encoder", renamed("model.", "model.language_model.")),
        ("qwen", "text_encoder", renamed("visual.", "model.visual.")),
        ("sd3", "text_encoder", lambda tensors: tensors | {"position_ids": torch.arange(16)}),
    ],
)
def test_layouts_that_the_library_reads_pass(
    family: str, part: str, change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    folder = FAMILIES[family].save(tmp_path)
    rewrite(folder / part, change)
    tensor_names.check(folder)


def test_an_encoder_without_what_is_never_read_passes(tmp_path: Path) -> None:
    folder = FAMILIES["qwen"].save(tmp_path)
    unread = tensor_names.UNREAD

    def trimmed(tensors: Tensors) -> Tensors:
        return {name: value for name, value in tensors.items() if not unread.search(name)}

    rewrite(folder / "text_encoder", trimmed)
    tensor_names.check(folder)


def test_a_quantised_part_is_left_to_its_library(sd3: Path) -> None:
    rewrite(sd3 / "text_encoder", without("text_projection.weight"))
    config = sd3 / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {}}))
    tensor_names.check(sd3)


def test_a_config_or_a_class_that_is_none_is_named(sd3: Path) -> None:
    index = sd3 / "model_index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"T5EncoderModel"', '"T7EncoderModel"'))
    with pytest.raises(ValueError, match=r"text_encoder_3 is a T7EncoderModel, which transformers"):
        tensor_names.check(sd3)
    index.write_text(whole)
    config = sd3 / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": "four"}))
    with pytest.raises(ValueError, match=r"transformer/config\.json describes no SD3Transformer2D"):
        tensor_names.check(sd3)


def test_a_folder_that_lacks_a_tensor_has_no_architecture(sd3: Path) -> None:
    """What `estimate.py` and `gpu_check.py` say of it, before they count anything."""
    rewrite(sd3 / "transformer", without("proj_out.bias"))
    with pytest.raises(ValueError, match=r"transformer lacks 1 of .*: proj_out.bias"):
        architecture.read(settings(sd3, "sd3"))
