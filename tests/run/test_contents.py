"""What a run reads is known by its content, wherever it lies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tp_grpo.data.prompts import PromptSet
from tp_grpo.run import contents
from tp_grpo.settings import Settings
from tp_grpo.store.compare import CONTENT

Smoke = Callable[..., ConfigDict]
PROMPTS = {"prompts.train": PromptSet(["a cat"], [{}])}


def digests(smoke: Smoke, **fields: object) -> dict[str, str]:
    return contents.of(Settings.read(smoke(**fields)), PROMPTS)


def test_a_model_under_another_path_is_the_same_and_another_model_is_not(
    smoke: Smoke, tmp_path: Path
) -> None:
    there = digests(smoke)
    assert there.keys() == {f"prompts.train{CONTENT}", f"model.path{CONTENT}"}
    copy = shutil.copytree(smoke().model.path, tmp_path / "copy")
    (copy / ".cache").mkdir()  # as `hf download` leaves it
    (copy / ".cache" / "when").write_text("today")
    assert digests(smoke, model__path=f"{copy}/") == there
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert digests(smoke, model__path=str(copy)) != there


def test_an_adapter_is_known_by_its_file(smoke: Smoke, tmp_path: Path) -> None:
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"an adapter")
    named = digests(smoke, lora__init=str(file.parent))
    copy = shutil.copy(file, tmp_path / "mine.safetensors")
    assert digests(smoke, lora__init=str(copy)) == named
    assert named.keys() - digests(smoke).keys() == {f"lora.init{CONTENT}"}


def test_what_is_no_model_is_refused(smoke: Smoke, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ValueError, match="is a single file"):
        digests(smoke, model__path=str(tmp_path / "one.safetensors"))
    with pytest.raises(ValueError, match="is neither a folder nor a hub id"):
        digests(smoke, model__path="no/such/folder")
