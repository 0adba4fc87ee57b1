"""The estimate against closed forms on the embedded model; that the recipes fit their GPUs."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from config import dgpo, flow_grpo, tp_grpo
from tests import forked
from tp_grpo.cost import meter
from tp_grpo.cost.estimate import Estimate, estimate, measure_decode
from tp_grpo.models import architecture
from tp_grpo.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
ADAPTED = 4 * 8 - 1  # modules of the embedded model: four blocks, whose last has no to_add_out
LORA_BYTES = 4 * ADAPTED * 16 * (128 + 128)  # fp32, rank 16, 128 -> 128


@functools.cache
def of(recipe: str, world_size: int = 1) -> Estimate:
    return estimate(Settings.read(tp_grpo.get_config(recipe)), world_size)


def changed(world_size: int = 1, **fields: object) -> Estimate:
    config = tp_grpo.get_config("paper")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return estimate(Settings.read(config), world_size)


def test_the_policy_its_gradients_optimizer_and_average_by_hand() -> None:
    cost = of("paper")
    assert cost.counts.adapted_modules == ADAPTED
    assert cost.counts.trainable == LORA_BYTES // 4
    update = cost.memory["update"]
    assert update["trained weights"] == update["EMA"] == update["gradients"] == LORA_BYTES
    assert update["optimizer"] == 2 * LORA_BYTES
    assert "gradients" not in cost.memory["sample"]
    assert "gradient buckets" not in update
    split = changed(2, sample__batch_size=24, train__optimizer="adamw_8bit").memory["update"]
    assert split["gradient buckets"] == LORA_BYTES
    # Two moments of one byte, each with an fp32 scale for 256 of them.
    assert split["optimizer"] == round(LORA_BYTES / 4 * (2 + 8 / 256))
    assert split["trajectories"] == cost.memory["update"]["trajectories"] // 2


def test_the_stored_trajectories_by_hand() -> None:
    # 4 states and 3 means of 8 x 12 x 12; a condition of 16 + 12 tokens and a pooled vector.
    sample = 4 * (7 * 8 * 12 * 12 + (16 + 12) * 128 + 128)
    assert of("paper").memory["update"]["trajectories"] == 96 * sample
    assert changed(sample__store_on_cpu=True).memory["update"]["trajectories"] == 48 * sample


def test_old_policies_are_counted_one_by_one() -> None:
    """AWM's lagging policy, besides the old one of an epoch with two updates."""
    fields = {"objective__name": "awm", "objective__old_ramp": 0.1, "credit__name": "terminal"}
    assert changed(**fields).memory["sample"]["old policy"] == 2 * LORA_BYTES
    one = changed(**fields, train__updates_per_epoch=1)
    assert one.memory["sample"]["old policy"] == LORA_BYTES
    # A forward pass more for each point where it is compared with the old one, in half the updates.
    each = changed(**fields).flops.train - one.flops.train
    assert each == pytest.approx(0.5 * 96 * 2 * one.flops.forward, rel=1e-6)
    assert "old policy" not in of("paper").memory["sample"]


def test_what_crosses_the_network_by_hand() -> None:
    assert set(vars(of("paper").network).values()) == {0}
    two = changed(2, sample__batch_size=24)
    cost, frozen = two.network, 4 * two.counts.transformer
    # In a ring of two, a rank sends half of the gradients and then half of the sums.
    assert cost.gradients == LORA_BYTES
    # Half of 96 images' ladders of 4 entries, the totals, one scorer's, and an int64 of the prompt.
    assert cost.results == 48 * 3 * 4 * 4
    # Half of the frozen weights, forward and backward, for each of 3 steps; no buffers.
    assert 0.9 * frozen / 2 < cost.share_per_pass <= frozen / 2
    assert cost.shares == 6 * cost.share_per_pass
    four = changed(4, sample__batch_size=12, train__beta=1e-4).network
    assert four.gradients == 1.5 * LORA_BYTES
    assert four.shares == 9 * four.share_per_pass
    assert changed(2, sample__batch_size=24, lora__rank=0).network.shares == 0


def test_text_encoders_are_there_while_they_encode_or_always() -> None:
    encoders = 4 * sum(architecture.read(tp_grpo.get_config("paper").model).text_encoders.values())
    offloaded, resident = of("paper").memory, changed(model__text_encoders="resident").memory
    assert offloaded["encode"]["text encoders"] == encoders
    assert not any("text encoders" in offloaded[phase] for phase in ("sample", "decode", "update"))
    assert all(phase["text encoders"] == encoders for phase in resident.values())


def test_the_compute_of_an_epoch_adds_up() -> None:
    cost = of("paper")
    plan, flops = cost.plan, cost.flops
    assert (plan.images, plan.nfe, plan.ladder) == (96, 6 + 3 * 5 - 3, 4)
    assert flops.sample == plan.images * plan.nfe * flops.forward
    # Without a KL term: a forward and a backward, as long where frozen weights need no gradient.
    per_step = flops.train / (plan.images * 3)
    assert 1.5 * flops.forward < per_step < 2.5 * flops.forward
    with_reference = changed(train__beta=1e-4).flops.train / (plan.images * 3)
    lora_forward = 2 * 16 * (128 + 128) * (16 * 36 // 16 + 28)
    assert flops.forward - ADAPTED * lora_forward < with_reference - per_step < flops.forward
    assert flops.evaluate is not None
    assert flops.total == flops.sample + flops.decode + flops.train + flops.evaluate
    assert cost.hours(100, 2.0) == pytest.approx(100 * flops.total / 2e12 / 3600)


def test_each_saving_shrinks_its_phase() -> None:
    full, fields = of("paper"), {"sample__max_rows": 48, "eval__batch_size": 48}
    less = changed(model__gradient_checkpointing=True, model__decode_batch_size=2, **fields)
    assert less.memory["update"]["activations"] < full.memory["update"]["activations"] / 2
    assert less.flops.train > full.flops.train
    assert less.flops.sample == full.flops.sample
    assert less.peak("decode") < full.peak("decode")
    assert less.peak("sample") < full.peak("sample")
    assert less.peak("encode") == full.peak("encode")


def test_more_steps_in_a_backward_pass_take_memory_and_no_other_work() -> None:
    full, stacked = of("paper"), changed(train__batch_size=96)
    assert (
        1.9 < stacked.memory["update"]["activations"] / full.memory["update"]["activations"] < 2.1
    )
    assert stacked.flops.train == pytest.approx(full.flops.train, rel=1e-3)
    assert stacked.plan.micro_batches == 2
    assert stacked.flops.forward == pytest.approx(full.flops.forward, rel=1e-3)


def test_training_the_whole_transformer_keeps_a_frozen_copy_for_the_kl_alone() -> None:
    whole, with_kl = changed(lora__rank=0), changed(lora__rank=0, train__beta=1e-4)
    weights = 4 * whole.counts.trainable
    assert with_kl.peak("encode") == whole.peak("encode") + weights
    assert whole.counts.adapted_modules == 0
    assert whole.counts.trainable * 4 == whole.memory["update"]["gradients"]
    assert whole.memory["update"]["frozen transformer"] == 4 * (
        whole.counts.transformer - whole.counts.trainable
    )


def test_one_call_of_the_vae_says_what_all_take() -> None:
    config = tp_grpo.get_config("paper")
    backbone = architecture.build(architecture.read(config.model), config.model)
    x = torch.empty(100, *backbone.latent_shape, device=architecture.META)
    held = [*backbone.pipeline.vae.parameters(), x]
    with meter.Meter(held) as counted, meter.Kernels(None):
        backbone.decode(x)
    flops, peak = measure_decode(backbone, 100)
    assert counted.flops == 100 * flops
    assert 0.98 * peak < counted.peak <= peak


def test_flow_grpo_samples_without_branches() -> None:
    cost = estimate(Settings.read(flow_grpo.get_config("shapes_tiny")), 1)
    assert cost.plan.ladder == 1
    assert cost.flops.sample == 96 * 6 * cost.flops.forward
    assert cost.flops.decode == pytest.approx(of("paper").flops.decode / 4)


def test_guidance_while_sampling_alone_doubles_what_sampling_takes() -> None:
    plain, guided = dgpo.get_config("shapes_smoke"), dgpo.get_config("shapes_smoke")
    guided.sample.guidance_scale, guided.train.guidance_scale = 4.5, 1.0
    both = dgpo.get_config("shapes_smoke")
    both.sample.guidance_scale = 4.5
    without, sampled, always = (estimate(Settings.read(c), 1).flops for c in (plain, guided, both))
    assert sampled.sample == pytest.approx(2 * without.sample, rel=1e-3)
    assert sampled.train == pytest.approx(without.train, rel=1e-3)
    assert always.train == pytest.approx(2 * without.train, rel=1e-2)


@pytest.mark.slow
def test_the_published_sd3_recipe_does_not_fit_24_gb_and_the_warning_names_what_to_change() -> None:
    recipe = "--config=config/tp_grpo.py:pickscore_sd3"
    result = forked.run("scripts/estimate.py", recipe, "--world-size=32", "--gpu-memory=24")
    assert result.returncode == 0, result.stderr
    (warning,) = [line for line in result.stdout.splitlines() if "WARNING" in line]
    assert warning.startswith("WARNING: update needs ")
    assert "more than 21.60 GB (24 GB less 10% spare)" in warning
    assert "most of it: activations" in warning
    assert "model.gradient_checkpointing (now False)" in warning
    for line in (
        "LoRA of rank 32 on 191 modules, 18.78 M parameters",
        "1152 an epoch: 48 prompts x 24",
        "55 model evaluations an image, 63360 an epoch",
        "11520 images an epoch in 128 calls of each scorer",
        "18 micro-batches of 9 accumulated (2 rollout batches x 9 steps)",
        "prompts.eval cannot be read yet",
        "138.77 MB an update: mean of the trained part's, fp32",
        "(assumed; give yours as --tflops)",
    ):
        assert line in result.stdout, line


@pytest.mark.slow
def test_flux_at_32_gpus_prints_in_a_minute() -> None:
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "scripts/estimate.py", "--config=config/tp_grpo.py:pickscore_flux"]
    result = subprocess.run(
        [*command, "--world-size=32", "--tflops=400", "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    # Of the processor: other tests may run at the same time.
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", result.stderr
    cost: dict[str, Any] = json.loads(result.stdout)
    assert cost["plan"]["images"] == 1152
    assert cost["plan"]["nfe"] == 21
    assert cost["plan"]["micro_batches"] == 30
    assert cost["parameters"] == {
        "transformer": 11901408320,
        "adapted_modules": 342,
        "trainable": 179306496,
    }
    assert cost["memory_bytes"]["update"]["frozen transformer"] == 2 * 11901408320
    assert cost["hours_per_100_epochs"] == pytest.approx(
        cost["flops_per_epoch"]["total"] * 100 / 32 / 400e12 / 3600
    )
    assert cost["warnings"] == ["Every phase fits in 80 GB with 10% to spare."]
    assert seconds < 60, seconds


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config=config/tp_grpo.py:shapes_tiny", "--world-size=7"],
            "do not split over 7 ranks; the nearest",
        ),
        (["--config=config/tp_grpo.py:shapes_tny"], "did you mean 'shapes_tiny'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    result = forked.run("scripts/estimate.py", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr, result.stderr


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="'fp8' is not one of fp32, bf16, fp16"):
        changed(model__dtype="fp8")
