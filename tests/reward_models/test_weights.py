"""Weights that are missing, broken or of another model give one clear error, before any score."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import CLIPModel

from reward_models import build
from reward_models.model import Model, pick_device
from tests.reward_models import tiny

MODEL_SCORERS = ("pickscore", "clipscore", "aesthetic", "hpsv2", "imagereward", "geneval")
REPOS = {
    "pickscore": (
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "rewards.scorers.pickscore.processor_path",
    ),
    "clipscore": ("openai/clip-vit-large-patch14", "rewards.scorers.clipscore.path"),
    "aesthetic": (
        "trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth",
        "rewards.scorers.aesthetic.path",
    ),
    "hpsv2": ("xswu/HPSv2 HPS_v2.1_compressed.pt", "rewards.scorers.hpsv2.path"),
    "imagereward": ("google-bert/bert-base-uncased", "rewards.scorers.imagereward.tokenizer_path"),
    "geneval": ("facebook/mask2former-swin-small-coco-instance", "rewards.scorers.geneval.path"),
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and an empty cache."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def error_of(name: str, **options: str) -> str:
    with pytest.raises(ValueError) as raised:
        build(name, **options)
    return str(raised.value)


@pytest.mark.parametrize("name", MODEL_SCORERS)
def test_without_a_network_the_error_names_files_and_option(name: str, offline: None) -> None:
    error, (repo, option) = error_of(name), REPOS[name]
    assert re.search(rf"`hf download (?={re.escape(repo)})\S+( [\w.-]+)+`", error), error
    assert option in error
    assert re.search(r"\(about [\d.]+ [GM]B\)", error), error


def test_the_error_for_a_second_model_names_its_option(tmp_path: Path, offline: None) -> None:
    clip = str(tiny.save_clip(tmp_path / "clip"))
    error = error_of("pickscore", processor_path=clip)
    assert "`hf download yuvalkirstain/PickScore_v1 config.json model.safetensors`" in error
    error = error_of("aesthetic", path=str(tiny.save_head(tmp_path / "head.pth")))
    assert "rewards.scorers.aesthetic.clip_path" in error
    tokenizer = str(tiny.save_bert_tokenizer(tmp_path / "bert", 120))
    error = error_of("imagereward", tokenizer_path=tokenizer)
    assert "`hf download THUDM/ImageReward ImageReward.pt`" in error
    error = error_of("geneval", path=str(tiny.save_detector(tmp_path / "detector")))
    assert "rewards.scorers.geneval.color_path" in error
    assert "open_clip_model.safetensors" in error


@pytest.mark.parametrize("name", MODEL_SCORERS)
def test_a_path_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=f"{name}: the weights {gone} cannot be loaded: no such file or folder"
    ):
        build(name, path=gone)


def test_a_path_below_a_folder_that_may_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exists(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(
        ValueError, match="weights /sealed/x cannot be loaded: it cannot be read, P"
    ):
        build("pickscore", path="/sealed/x")


def test_a_folder_without_the_file_and_a_truncated_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder has no HPS_v2\.1_compressed\.pt"):
        build("hpsv2", path=str(tmp_path))
    whole = tiny.save_head(tmp_path / "whole.pth").read_bytes()
    reasons = {
        "aesthetic-model.pth": "it cannot be read",
        "head.safetensors": "head.safetensors is",
    }
    for name, reason in reasons.items():
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name} cannot be loaded: {reason}"):
            build("aesthetic", path=str(tmp_path / name))


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"layers.0.weight": Harm()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="cannot be read, UnpicklingError"):
        build("aesthetic", path=str(tmp_path / "head.pth"))
    assert not (tmp_path / "harm").exists()


def test_the_weights_of_another_model_are_refused_not_filled_with_noise(tmp_path: Path) -> None:
    folder = tiny.save_clip(tmp_path / "clip")
    CLIPModel.from_pretrained(folder).vision_model.save_pretrained(folder)
    tiny_config = CLIPModel.from_pretrained(tiny.save_clip(tmp_path / "whole")).config
    tiny_config.save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"they are not those of a CLIPModel: \d+ of its \d+ parameters are absent"
    ):
        build("clipscore", path=str(folder))
    torch.save({"a": torch.zeros(1)}, tmp_path / "hps.pt")
    with pytest.raises(ValueError, match="open_clip cannot read them as a ViT-B-32"):
        build("hpsv2", path=str(tmp_path / "hps.pt"), architecture="ViT-B-32")


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path, offline: None) -> None:
    whole, clip = tiny.save_clip(tmp_path / "whole"), tiny.save_clip(tmp_path / "clip")
    bert = tiny.save_bert_tokenizer(tmp_path / "bert", 120)
    for folder in (clip, bert):
        (folder / "tokenizer.json").unlink()
    for name in ("pickscore", "clipscore"):
        with pytest.raises(ValueError, match=f"{clip} cannot be loaded: there is no vocabulary"):
            build(name, path=str(whole), processor_path=str(clip))
    with pytest.raises(ValueError, match=f"{bert} cannot be loaded: there is no vocabulary"):
        build("imagereward", tokenizer_path=str(bert))
    # Without processor_path such a folder counts as one without a processor.
    assert "CLIP-ViT-H-14-laion2B-s32B-b79K cannot" in error_of("pickscore", path=str(clip))


def test_a_vocabulary_that_reads_nothing_is_refused(tmp_path: Path) -> None:
    clip = tiny.save_clip(tmp_path / "clip")
    tokenizer = json.loads((clip / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (clip / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="there is no vocabulary"):
        build("pickscore", path=str(clip))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_damaged_file_of_transformers_is_named(file: str, tmp_path: Path) -> None:
    clip = tiny.save_clip(tmp_path / "clip")
    whole = (clip / file).read_bytes()
    cases = {POINTER: "is a pointer of git-lfs, .*`git lfs pull` fetches", b"": "is empty"}
    cases[whole[: len(whole) // 2]] = "is damaged or cut short, (Safetensor|JSONDecode)Error: "
    if file.endswith(".json"):
        cases[b"[]"] = "holds something other than a JSON object"
    for damaged, reason in cases.items():
        (clip / file).write_bytes(damaged)
        assert re.search(
            rf"{clip} cannot be loaded: {file} {reason}", error_of("pickscore", path=str(clip))
        )


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    clip = tiny.save_clip(tmp_path / "clip")
    file = clip / "model.safetensors"
    state = {**load_file(file), "logit_scale": torch.zeros(3)}
    file.write_bytes(save(state, {"format": "pt"}))
    assert (
        f"pickscore: the weights {clip} cannot be loaded: they have logit_scale of shape (3,), "
        "where config.json asks for ()."
    ) in error_of("pickscore", path=str(clip))


def test_a_file_that_holds_no_tensors_by_name_is_refused(tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    contents = ([1], {"state_dict": 5}, {"layers.0.weight": 5}, {10: torch.zeros(1)})
    for content in contents:
        torch.save(content, head)
        assert "it holds something other than tensors by" in error_of("aesthetic", path=str(head))


@pytest.mark.parametrize("text", ["Repository not found", "<html>", "not found\n", "\n", "é", "}q"])
def test_a_text_in_the_place_of_weights_is_refused(text: str, tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    head.write_text(text, encoding="utf-8")
    message = error_of("aesthetic", path=str(head))
    assert f"aesthetic: the weights {head} cannot be loaded: it cannot be read, " in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["aesthetic", "hpsv2", "imagereward"])
def test_a_pointer_in_place_of_one_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(POINTER)
    options = {"path": str(tmp_path / "file.pt")}
    if name == "imagereward":
        options["tokenizer_path"] = str(tiny.save_bert_tokenizer(tmp_path / "bert", 120))
    options |= {"architecture": "ViT-B-32"} if name == "hpsv2" else {}
    assert "file.pt is a pointer of git-lfs" in error_of(name, **options)


@pytest.mark.parametrize("name", (*MODEL_SCORERS, "general_ocr"))
def test_the_home_of_an_unknown_user_is_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"~jane/x (cannot be loaded: no such|must hold one)"):
        build(name, path="~jane/x")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "gpu"}, "device = 'gpu' is not a device"),
        ({"dtype": "fp16"}, "dtype = 'fp16' is not one of float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size = 0 must be a whole number of at least 1"),
    ],
)
@pytest.mark.parametrize("name", ("pickscore", "clipscore", "imagereward", "geneval"))
def test_bad_settings_are_refused_before_weights_are_sought(
    name: str, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_an_architecture_that_open_clip_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-Z'"):
        build("hpsv2", architecture="ViT-Z")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA here"):
        pick_device("cuda:0")
    assert pick_device("auto") == torch.device("cpu")


def test_importing_the_scorers_loads_no_library_of_models() -> None:
    code = (
        "import sys, importlib, reward_models\n"
        "for target in reward_models._FACTORIES.values():\n"
        "    importlib.import_module(target.partition(':')[0])\n"
        "heavy = {'transformers', 'open_clip', 'huggingface_hub', 'openai', 'httpx'}\n"
        "print(sorted(heavy.intersection(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_chunks_cover_everything_once() -> None:
    model = Model("cpu", "float32", batch_size=3)
    assert model.in_chunks(list, range(7)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert model.in_chunks(lambda *parts: parts, "abcd", "efgh") == [("abc", "efg"), ("d", "h")]
    assert model.in_chunks(list, []) == []
