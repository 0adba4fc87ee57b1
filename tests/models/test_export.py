"""What is trained here works elsewhere: peft and the stock pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_families import lora
from tests.tiny_models import CPU, other_than, settings
from tp_grpo import models
from tp_grpo.models import export, families
from tp_grpo.models.policy import Policy
from tp_grpo.shapes import captions
from tp_grpo.train.rollout import EVALUATION, draw_noise
from tp_grpo.trainer import Trainer
from tp_grpo.types import PromptBatch

STOCK: dict[str, Any] = {kind: families.adapter(kind).pipeline_class for kind in families.FAMILIES}
SIZE = {"height": 48, "width": 48, "max_sequence_length": 12}


@pytest.fixture
def train(
    smoke: Callable[..., ConfigDict], kind: str, path: Path
) -> Callable[..., tuple[ConfigDict, Path]]:
    """Train the tiny checkpoint for an epoch; its config and run folder."""

    def run(**fields: object) -> tuple[ConfigDict, Path]:
        config = smoke(
            model__type=kind,
            model__path=str(path),
            train__learning_rate=3e-2,
            epochs=1,
            sample__guidance_scale=2.0,
            **fields,
        )
        return config, Trainer(config).run().parent

    return run


def stock_images(pipeline: Any, config: ConfigDict, latent_shape: tuple[int, ...]) -> Tensor:
    """The first four evaluation images by the stock pipeline."""
    prompts = [prompt for prompt, _ in captions.held_out()[:4]]
    batch = PromptBatch(prompts, [{}] * 4, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    noise = draw_noise((EVALUATION, config.seed), batch, latent_shape)
    steps = {
        "num_inference_steps": config.eval.steps,
        "guidance_scale": config.sample.guidance_scale,
    }
    return torch.from_numpy(
        pipeline(prompts, latents=noise, output_type="np", **steps, **SIZE).images
    )


def evaluated(folder: Path, epoch: int) -> Tensor:
    return load_file(folder / "evaluations" / f"epoch-{epoch}.safetensors")["images"].float() / 255


def drawn_by(pipeline: Any, config: ConfigDict, folder: Path) -> bool:
    """Whether this pipeline draws the images of the last evaluation, to the rounding of a pixel."""
    shape = models.load(config.model, CPU).latent_shape
    difference = stock_images(pipeline, config, shape) - evaluated(folder, 1)
    return bool(difference.abs().max() < 0.6 / 255 + 1e-3)


def test_a_lora_gives_the_evaluations_images_in_the_stock_pipeline_and_under_peft(
    train: Callable[..., tuple[ConfigDict, Path]], kind: str, path: Path
) -> None:
    config, folder = train()
    change = (evaluated(folder, 0) - evaluated(folder, 1)).abs().max()
    assert change > 10 / 255, "training changed nothing"
    for adapter in (folder / "adapter", folder / "checkpoints/epoch-1/adapter"):
        pipeline = STOCK[kind].from_pretrained(path)
        pipeline.load_lora_weights(adapter)
        assert drawn_by(pipeline, config, folder), adapter
        other = STOCK[kind].from_pretrained(path)
        wrapped = PeftModel.from_pretrained(other.transformer, adapter)
        other.transformer = wrapped.merge_and_unload()
        assert drawn_by(other, config, folder), adapter


def test_a_fully_trained_transformer_gives_them_too_and_resumes(
    train: Callable[..., tuple[ConfigDict, Path]], kind: str, path: Path
) -> None:
    config, folder = train(lora__rank=0, train__beta=1e-2)
    assert (evaluated(folder, 0) - evaluated(folder, 1)).abs().max() > 10 / 255
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert line["ratio_dev"] == 0
    assert line["kl"] > 0
    stock = type(models.load(config.model, CPU).transformer)
    transformer = stock.from_pretrained(folder / "adapter" / "transformer")
    assert drawn_by(STOCK[kind].from_pretrained(path, transformer=transformer), config, folder)
    config.epochs = 2
    Trainer(config).run()
    assert "after epoch 2" in (folder / "adapter" / "README.md").read_text()


def test_the_published_targets_hit_what_they_should(random_sd3: Path, random_flux: Path) -> None:
    def modules(kind: str, path: Path) -> int:
        backbone = models.load(settings(path, kind), CPU)
        return len(
            Policy(
                backbone.transformer, rank=2, alpha=4, targets=backbone.lora_targets, kl=False
            ).parameters
        )

    # SD3: four layers of 8, the last one's context has no output projection. Two tensors a module.
    assert modules("sd3", random_sd3) == 2 * (4 * 8 - 1)
    # FLUX: two double blocks of 8 and 2 x 2 feed-forward layers, two single blocks of q, k, v.
    assert modules("flux", random_flux) == 2 * (2 * (8 + 4) + 2 * 3)


@pytest.mark.parametrize("rank", [4, 0])
def test_what_is_saved_loads_back_and_a_foreign_one_is_refused(
    load: Callable[..., Any], kind: str, saved: Callable[[str], Path], rank: int, tmp_path: Path
) -> None:
    backbone = load()
    policy = Policy(
        backbone.transformer, rank=rank, alpha=8, targets=backbone.lora_targets, kl=False
    )
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape)
    backbone.export(policy, policy.parameters, tmp_path)
    again = export.load(load().transformer, tmp_path)
    for name, parameter in policy.parameters.items():
        scale = 2 if "lora_B" in name else 1  # alpha / rank = 8 / 4, where the loaded one's is 1
        assert torch.equal(again.parameters[name], scale * parameter), name
    other = other_than(kind)
    foreign = models.load(settings(saved(other), other), CPU)
    with pytest.raises(
        ValueError, match=r"trained on another model|no module of the transformer is called"
    ):
        export.load(foreign.transformer, tmp_path)
    export.check_base(tmp_path, backbone.transformer.config)
    with pytest.raises(
        ValueError, match=r"trained on another model|no module of the transformer is called"
    ):
        export.check_base(tmp_path, foreign.transformer.config)
    with pytest.raises(ValueError, match="holds no trained policy"):
        export.load(load().transformer, tmp_path / "none")


@pytest.mark.parametrize("alpha", [4, 8, 32])
def test_the_tensors_alone_are_the_update_in_full(
    load: Callable[..., Any], tmp_path: Path, alpha: int
) -> None:
    """Many tools read no config and no metadata: they take alpha for the rank."""
    backbone = load()
    made = lora(backbone, alpha=alpha)
    before = {name: value.clone() for name, value in made.parameters.items()}
    backbone.export(made, made.parameters, tmp_path)
    assert all(torch.equal(made.parameters[name], value) for name, value in before.items())
    assert backbone.transformer.peft_config["default"].lora_alpha == alpha
    files = {"pytorch_lora_weights": "transformer.", "adapter_model": "base_model.model."}
    for file, prefix in files.items():
        tensors = load_file(tmp_path / f"{file}.safetensors")
        for name in {key.removeprefix(prefix).rpartition(".lora_")[0] for key in tensors}:
            up, down = (tensors[f"{prefix}{name}.lora_{x}.weight"] for x in "BA")
            torch.testing.assert_close(up @ down, change(backbone.transformer, name))
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as held:
        header = json.loads(held.metadata()["lora_adapter_metadata"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert [header["transformer.lora_alpha"], header["transformer.r"]] == [4, 4]
    assert [config["lora_alpha"], config["r"]] == [4, 4]


@pytest.mark.parametrize("rank, writes", [(4, "save_file"), (0, "save_torch_state_dict")])
def test_an_export_that_does_not_survive_is_noticed(
    load: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    writes: str,
) -> None:
    backbone = load()
    policy = Policy(
        backbone.transformer, rank=rank, alpha=8, targets=backbone.lora_targets, kl=False
    )
    whole = getattr(export, writes)

    def spoilt(values: dict[str, Tensor], *arguments: Any, **options: Any) -> None:
        last = list(values)[-1]
        whole({**values, last: values[last] + 1}, *arguments, **options)

    monkeypatch.setattr(export, writes, spoilt)
    with pytest.raises(RuntimeError, match="did not survive saving"):
        backbone.export(policy, policy.parameters, tmp_path)


@pytest.fixture
def peft_folder(load: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """A folder that peft wrote by options of a LoraConfig, and the transformer it adapts."""

    def write(**options: Any) -> tuple[Path, Any]:
        transformer = load().transformer
        options = {"target_modules": ["attn.to_q"], "init_lora_weights": False} | options
        wrapped = get_peft_model(transformer, LoraConfig(r=4, lora_alpha=6, **options))
        wrapped.save_pretrained(tmp_path / "peft")
        return tmp_path / "peft", wrapped

    return write


def change(transformer: Any, name: str) -> Tensor:
    """What the LoRA adds to the weight of that module."""
    return transformer.get_submodule(name).get_delta_weight("default")


@pytest.mark.parametrize(
    "options, scale",
    [
        ({}, 1.5),
        ({"use_rslora": True}, 3.0),
        ({"layers_to_transform": [1], "layers_pattern": "transformer_blocks"}, 1.5),
        ({"target_modules": r".*\.1\.attn\.to_(q|k)"}, 1.5),
        ({"exclude_modules": ["transformer_blocks.0.attn.to_q"]}, 1.5),
    ],
)
def test_a_folder_of_peft_is_loaded_at_its_own_scale_on_its_own_modules(
    load: Callable[..., Any],
    peft_folder: Callable[..., tuple[Path, Any]],
    options: dict[str, Any],
    scale: float,
) -> None:
    folder, wrapped = peft_folder(**options)
    transformer = load().transformer
    policy = export.load(transformer, folder)
    stored = load_file(folder / "adapter_model.safetensors")
    assert len(policy.parameters) == len(stored)
    for key in stored:
        name = key.removeprefix("base_model.model.").rpartition(".lora_")[0]
        up, down = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(change(transformer, name), scale * up @ down)
        torch.testing.assert_close(
            change(transformer, name), change(wrapped.base_model.model, name)
        )
