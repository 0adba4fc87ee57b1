"""What is trained here works elsewhere: peft, the stock pipelines, generate.py and evaluate.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from ml_collections import ConfigDict
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import CPU, PROMPTS, settings
from tp_grpo import models
from tp_grpo.evaluate import policy_on_base
from tp_grpo.models import export
from tp_grpo.models.policy import Policy
from tp_grpo.shapes import captions
from tp_grpo.train.rollout import EVALUATION, draw_noise
from tp_grpo.trainer import Trainer
from tp_grpo.types import PromptBatch

ROOT = Path(__file__).resolve().parents[2]
STOCK: dict[str, Any] = {"sd3": StableDiffusion3Pipeline, "flux": FluxPipeline}
TRANSFORMER: dict[str, Any] = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
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


@pytest.mark.parametrize("where", ["adapter", "checkpoints/epoch-1/adapter"])
def test_a_lora_gives_the_evaluations_images_in_the_stock_pipeline_and_under_peft(
    train: Callable[..., tuple[ConfigDict, Path]], kind: str, path: Path, where: str
) -> None:
    config, folder = train()
    shape = models.load(config.model, CPU).latent_shape
    assert (evaluated(folder, 0) - evaluated(folder, 1)).abs().max() > 10 / 255, (
        "training changed nothing"
    )

    pipeline = STOCK[kind].from_pretrained(path)
    pipeline.load_lora_weights(folder / where)
    assert (
        stock_images(pipeline, config, shape) - evaluated(folder, 1)
    ).abs().max() < 0.6 / 255 + 1e-3

    other = STOCK[kind].from_pretrained(path)
    wrapped = PeftModel.from_pretrained(other.transformer, folder / where)
    other.transformer = wrapped.merge_and_unload()
    assert (
        stock_images(other, config, shape) - evaluated(folder, 1)
    ).abs().max() < 0.6 / 255 + 1e-3


def test_a_fully_trained_transformer_gives_them_too_and_resumes(
    train: Callable[..., tuple[ConfigDict, Path]], kind: str, path: Path
) -> None:
    config, folder = train(lora__rank=0, train__beta=1e-2)
    shape = models.load(config.model, CPU).latent_shape
    assert (evaluated(folder, 0) - evaluated(folder, 1)).abs().max() > 10 / 255
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert line["ratio_dev"] == 0 and line["kl"] > 0
    transformer = TRANSFORMER[kind].from_pretrained(folder / "adapter" / "transformer")
    pipeline = STOCK[kind].from_pretrained(path, transformer=transformer)
    assert (
        stock_images(pipeline, config, shape) - evaluated(folder, 1)
    ).abs().max() < 0.6 / 255 + 1e-3
    config.epochs = 2
    Trainer(config).run()
    assert "after epoch 2" in (folder / "adapter" / "README.md").read_text()


def test_the_base_comes_back_inside_reference(load: Callable[..., Any]) -> None:
    for rank in (4, 0):
        backbone = load()
        x, cond = torch.randn(2, *backbone.latent_shape), backbone.encode(PROMPTS)
        with torch.no_grad():
            base = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
            policy = Policy(
                backbone.transformer, rank=rank, alpha=8, targets=backbone.lora_targets, kl=True
            )
            assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), base)
            for parameter in policy.parameters.values():
                parameter += 0.1 * torch.randn(parameter.shape)
            tuned = backbone.velocity(x, torch.tensor(0.5), cond, 1.0)
            assert not torch.allclose(tuned, base, atol=1e-3)
            with policy.reference():
                assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), base)
            assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond, 1.0), tuned)
        assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.parameters.values())


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
    load: Callable[..., Any],
    kind: str,
    random_sd3: Path,
    random_flux: Path,
    rank: int,
    tmp_path: Path,
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
    assert all(torch.equal(again.parameters[name], p) for name, p in policy.parameters.items())
    other = {"sd3": "flux", "flux": "sd3"}[kind]
    foreign = models.load(settings({"sd3": random_sd3, "flux": random_flux}[other], other), CPU)
    with pytest.raises(
        ValueError, match=r"trained on another model|no module of the transformer is called"
    ):
        export.load(foreign.transformer, tmp_path)
    with pytest.raises(ValueError, match="holds no trained policy"):
        export.load(load().transformer, tmp_path / "none")


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


def script(name: str, *arguments: str) -> str:
    command = [
        sys.executable,
        f"scripts/{name}.py",
        "--config=config/tp_grpo.py:shapes_smoke",
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds on the embedded model."""
    from config import tp_grpo

    config = tp_grpo.get_config("shapes_smoke")
    config.output_dir, config.train.learning_rate = str(tmp_path_factory.mktemp("runs")), 1e-2
    return Trainer(config).run().parent


def test_generate_draws_base_and_tuned_from_the_same_noise(run: Path, tmp_path: Path) -> None:
    common = (f"--checkpoint={run}", "--prompts=a red circle", "--members=2", "--grid")
    script("generate", *common, f"--out={tmp_path / 'a'}", "--seed=7")
    script("generate", *common, f"--out={tmp_path / 'b'}", "--seed=7", "--config.eval.batch_size=1")
    script("generate", *common, f"--out={tmp_path / 'c'}", "--seed=8")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"0000-{m}-{k}.png" for m in (0, 1) for k in ("base", "tuned")] + ["grid.png"]

    def pixels(folder: str, name: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / folder / name)).astype(int)

    assert (abs(pixels("a", names[0]) - pixels("a", names[1])) > 10).any(), "tuned is not the base"
    for name in names[:4]:
        assert abs(pixels("a", name) - pixels("b", name)).max() <= 1
    assert (abs(pixels("a", names[0]) - pixels("c", names[0])) > 10).any()
    assert pixels("a", "grid.png").shape == (48 + 4, 4 * 50 + 2, 3)


@pytest.mark.parametrize(
    "prompts, count", [("a red circle " * 30, 1), ("tests.scorers:two_prompts", 2)]
)
def test_generate_takes_any_text_and_any_source(
    run: Path, tmp_path: Path, prompts: str, count: int
) -> None:
    script("generate", f"--prompts={prompts}", f"--out={tmp_path}")
    assert len(list(tmp_path.iterdir())) == count


def test_of_a_run_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    """A finished run that is being gone on with has an adapter of its first end."""
    for name in (
        "adapter",
        "checkpoints/epoch-1/adapter",
        "checkpoints/epoch-12/adapter",
        "checkpoints/epoch-3/adapter",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / export.PEFT_WEIGHTS).touch()
    assert policy_on_base.find(str(tmp_path)) == tmp_path / "checkpoints/epoch-12/adapter"
    assert (
        policy_on_base.find(str(tmp_path / "checkpoints/epoch-3"))
        == tmp_path / "checkpoints/epoch-3/adapter"
    )
    shutil.rmtree(tmp_path / "checkpoints")
    assert policy_on_base.find(str(tmp_path)) == tmp_path / "adapter"


def test_evaluate_goes_on_and_gives_the_same_for_any_batch_size(run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    pairs = captions.held_out()[:6]
    tags = ["a", "b", "a", "b", "a", "a"]
    rows = [
        {"prompt": text, **data, "tag": tag} for (text, data), tag in zip(pairs, tags, strict=True)
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    common = (
        f"--checkpoint={run}/checkpoints/epoch-2",
        f"--prompts={prompts}",
        "--config.eval.prompts=0",
    )
    # How bright an image is does not jump where two kernels round differently, as a count of objects may.
    common += ("--rewards=tests.scorers:ByTag",)
    said = script("evaluate", *common, f"--out={tmp_path / 'one'}", "--config.eval.batch_size=6")
    assert "| total | all |" in said and "| total | b |" in said
    table = json.loads((tmp_path / "one" / "table.json").read_text())
    assert {(row["tag"], row["n"]) for row in table if row["score"] == "total"} == {
        (None, 6),
        ("a", 4),
        ("b", 2),
    }
    means = {(row["score"], row["tag"]): row["mean"] for row in table}
    halves = [means["tests.scorers:ByTag", tag] for tag in "ab"]
    assert means["tests.scorers:ByTag/overall", None] == pytest.approx(sum(halves) / 2)
    assert means["tests.scorers:ByTag", None] != pytest.approx(sum(halves) / 2), (
        "tags are weighed, not images"
    )

    script("evaluate", *common, f"--out={tmp_path / 'two'}", "--config.eval.batch_size=2")
    lines = (tmp_path / "two" / "scores-0.jsonl").read_text().splitlines()
    (tmp_path / "two" / "scores-0.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    said = script("evaluate", *common, f"--out={tmp_path / 'two'}", "--config.eval.batch_size=1")
    assert "3 of 6 images are scored already" in said
    again = json.loads((tmp_path / "two" / "table.json").read_text())
    for first, second in zip(table, again, strict=True):
        assert (
            first["mean"] == pytest.approx(second["mean"], abs=1e-3) and first["n"] == second["n"]
        )

    shutil.copytree(tmp_path / "two", tmp_path / "three")
    command = [
        sys.executable,
        "scripts/evaluate.py",
        "--config=config/tp_grpo.py:shapes_smoke",
        *common,
    ]
    command += [f"--out={tmp_path / 'three'}", "--config.seed=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "seed: 42 then, 5 now" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--checkpoint=no/such/run",), "no trained policy"),
        (("--rewards=shaps",), "did you mean 'shapes'"),
        (("--config.eval.members=0",), "eval.members = 0 must be at least 1"),
        (("--config.model.decode_batch_size=0",), "model.decode_batch_size = 0 must be at least 1"),
        (("--prompts=missing.txt",), "--prompts = 'missing.txt': no such file"),
    ],
)
def test_evaluate_refuses_with_a_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "scripts/evaluate.py",
        "--config=config/tp_grpo.py:shapes_smoke",
        *arguments,
    ]
    done = subprocess.run(
        [*command, f"--out={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
