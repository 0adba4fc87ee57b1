"""Files of a checkpoint that cannot be read are named before weights load."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from tests.tiny_models import CPU, settings
from tp_grpo import models
from tp_grpo.models import architecture, checkpoint_files, pretrained

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 711661\n"
CONFIGS = (
    *("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"),
    *("text_encoder_2/config.json", "tokenizer/tokenizer.json"),
    "tokenizer_3/tokenizer_config.json",
)
WEIGHTS = (
    "vae/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.fixture
def sd3(random_sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        StableDiffusion3Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights loaded")
    )
    return shutil.copytree(random_sd3, tmp_path / "sd3")


def refused(folder: Path, message: str) -> None:
    """By whatever reads the folder: the backbone, and the estimate."""
    model = settings(folder, "sd3")
    for read in (lambda: models.load(model, CPU), lambda: architecture.read(model)):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize("name", (*CONFIGS, *WEIGHTS))
def test_a_git_lfs_pointer_is_refused_with_the_command_that_fetches_the_file(
    sd3: Path, name: str
) -> None:
    (sd3 / name).write_text(POINTER)
    refused(sd3, rf"sd3/{name} is a git-lfs pointer, .*fetch it again \(.*`git lfs pull`\)")


@pytest.mark.parametrize("name", ["merges.txt", "spiece.model", "chat_template.jinja"])
def test_a_vocabulary_that_is_a_pointer_is_refused_too(sd3: Path, name: str) -> None:
    (sd3 / "tokenizer" / name).write_text(POINTER)
    refused(sd3, rf"tokenizer/{name} is a git-lfs pointer")


@pytest.mark.parametrize("name", CONFIGS)
def test_json_that_is_none_or_no_object_is_named(sd3: Path, name: str) -> None:
    for content, message in {
        b"": r"is no JSON \(Expecting value.*\); fetch it again",
        b"<html>": r"is no JSON \(Expecting value.*\); fetch it again",
        b"\xff\xfe": r"is no JSON \('utf-8' codec.*\); fetch it again",
        b"[]": "holds a list, not an object; fetch it again",
    }.items():
        (sd3 / name).write_bytes(content)
        refused(sd3, f"sd3/{name} {message}")


@pytest.mark.parametrize("content", ["{}", '{"model": {}}', '{"model": {"vocab": {}}}'])
def test_an_empty_tokenizer_is_named(sd3: Path, content: str) -> None:
    (sd3 / "tokenizer" / "tokenizer.json").write_text(content)
    refused(sd3, r"sd3/tokenizer/tokenizer\.json holds no vocabulary; fetch it again")


def test_words_without_their_merges_are_named(sd3: Path) -> None:
    folder = sd3 / "tokenizer"
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "merges.txt").unlink(missing_ok=True)
    (folder / "vocab.json").write_text('{"a": 0}')
    refused(sd3, r"sd3/tokenizer/merges\.txt is missing")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "vocab.json").write_text("{}")
    refused(sd3, r"sd3/tokenizer/vocab\.json holds no vocabulary")
    (folder / "vocab.json").unlink()
    (folder / "spiece.model").touch()
    refused(sd3, r"sd3/tokenizer/spiece\.model holds no vocabulary")


def without(file: Path, field: str, **values: object) -> None:
    config = json.loads(file.read_text())
    del config[field]
    file.write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "file, field, message",
    [
        ("transformer/config.json", "patch_size", "transformer/config.json has no patch_size; fet"),
        ("vae/config.json", "block_out_channels", "vae/config.json has no block_out_channels; fet"),
        ("model_index.json", "transformer", "sd3': model_index.json lists no transformer; fetch"),
    ],
)
def test_a_config_without_a_field_is_named(sd3: Path, file: str, field: str, message: str) -> None:
    without(sd3 / file, field)
    refused(sd3, message)


@pytest.mark.parametrize("values", [{"patch_size": None}, {"patch_size": [2]}])
def test_a_field_of_another_type_is_refused(sd3: Path, values: dict[str, object]) -> None:
    without(sd3 / "transformer" / "config.json", "patch_size", **values)
    refused(sd3, r"model\.path = '.*sd3': a config .* has a field that cannot be used, TypeError: ")


def test_a_config_without_its_class_is_read_as_the_index_says(sd3: Path) -> None:
    without(sd3 / "transformer" / "config.json", "_class_name")
    model = settings(sd3, "sd3")
    backbone = architecture.build(architecture.read(model), model)
    assert type(backbone.transformer).__name__ == "SD3Transformer2DModel"


def test_a_folder_that_the_index_does_not_list_is_passed_over(sd3: Path) -> None:
    shapes = architecture.read(settings(sd3, "sd3"))
    (sd3 / "text_encoder_old").mkdir()
    (sd3 / "text_encoder_old" / "model.fp16.safetensors").touch()
    assert architecture.read(settings(sd3, "sd3")) == shapes
    assert checkpoint_files.variant(sd3) is None


@pytest.mark.parametrize("name", (*CONFIGS, *WEIGHTS))
def test_a_folder_in_the_place_of_a_file_is_named(sd3: Path, name: str) -> None:
    (sd3 / name).unlink()
    (sd3 / name).mkdir()
    refused(sd3, f"sd3/{name} is a folder in the place of a file")


def test_an_index_without_files_is_named(sd3: Path) -> None:
    index = sd3 / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    for content in ("{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        refused(sd3, r"safetensors\.index\.json lists no files \(weight_map\); fetch it again")


def test_what_may_not_be_read_is_named(sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without the right; root has all of them."""

    def forbid(method: str, name: str) -> Callable[[], None]:
        whole = getattr(Path, method)

        def forbidden(path: Path, *arguments: object, **options: object) -> object:
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return whole(path, *arguments, **options)

        monkeypatch.setattr(Path, method, forbidden)
        return lambda: monkeypatch.setattr(Path, method, whole)

    for method, name, message in (
        ("open", "tokenizer.json", r"tokenizer\.json cannot be read: .*Permission denied"),
        ("iterdir", "text_encoder", r"model\.path = .* cannot be read: .*denied.*text_encoder"),
        ("is_dir", "sd3", r"model\.path = .* cannot be read: .*Permission denied"),
    ):
        allow = forbid(method, name)
        refused(sd3, message)
        allow()


def pickled(part: Path) -> None:
    """The part's weights as an older `save_pretrained` wrote them."""
    (file,) = part.glob("*.safetensors")
    name = "pytorch_model.bin" if part.name.startswith("text") else f"{file.stem}.bin"
    torch.save(load_file(file), part / name)
    file.unlink()


@pytest.mark.parametrize(
    "part, name",
    [
        ("transformer", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder_3", "pytorch_model.bin"),
    ],
)
def test_weights_in_bin_alone_are_refused_with_the_reason(sd3: Path, part: str, name: str) -> None:
    pickled(sd3 / part)
    refused(sd3, rf"{part} holds its weights only as {name}; .*only \.safetensors are read; conve")
    (sd3 / part / name).rename(sd3 / part / name.replace(".bin", "-00001-of-00002.bin"))
    refused(sd3, rf"{part} holds its weights only as .*-00001-of-00002\.bin; a \.bin file can run")


def test_the_command_that_converts_them_does(random_sd3: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_sd3, tmp_path / "sd3")
    pickled(folder / "transformer")
    pickled(folder / "text_encoder_3")
    with pytest.raises(ValueError) as caught:
        models.load(settings(folder, "sd3"), CPU)
    (program,) = re.findall(r'python -c "(.*)"$', str(caught.value))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240)
    for file in WEIGHTS[1], "text_encoder_3/model.safetensors":
        whole, converted = load_file(random_sd3 / file), load_file(tmp_path / "FOLDER" / file)
        assert whole.keys() == converted.keys()
        assert all(torch.equal(value, converted[name]) for name, value in whole.items())
    models.load(settings(tmp_path / "FOLDER", "sd3"), CPU)


def test_a_fetch_without_a_network_is_served_by_the_cache(
    monkeypatch: pytest.MonkeyPatch, random_sd3: Path
) -> None:
    """The HTTP library's errors are no OSErrors."""

    class NetworkError(Exception):
        pass

    def unreachable(*_: object, **__: object) -> None:
        raise NetworkError("Name or service not known")

    monkeypatch.setattr(pretrained, "list_repo_files", unreachable)
    monkeypatch.setattr(StableDiffusion3Pipeline, "download", lambda *_, **__: str(random_sd3))
    assert pretrained.fetch(StableDiffusion3Pipeline, "someone/sd3", "") == str(random_sd3)
