"""Training on a GPU: precisions, the ratio, resumption, where the host waits, two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from ml_collections import ConfigDict
from torch.nn.attention import SDPBackend, sdpa_kernel

from tp_grpo.cost.probe import Bench
from tp_grpo.settings import Settings
from tp_grpo.store import checkpoint
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
ROOT = Path(__file__).resolve().parents[2]


def trained(config: ConfigDict) -> list[dict[str, float]]:
    """The lines of each update and epoch."""
    Trainer(config).run()
    text = (Path(config.output_dir) / config.run_name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("dtype, error", [("bf16", 0.1), ("fp16", 0.02)])
def test_a_low_precision_step_has_the_gradient_of_fp32(
    smoke: Smoke, dtype: str, error: float
) -> None:
    """A loss scale that was forgotten, or applied twice, would be 65,536 times off."""
    norms = {}
    for precision in ("fp32", dtype):
        AcceleratorState._reset_state(reset_partial_state=True)
        fields = {"model__dtype": precision, "train__max_ratio_dev": float("inf")}
        lines = trained(smoke(run_name=precision, epochs=1, **fields))
        updates = [line for line in lines if line["kind"] == "update"]
        assert all(line["skipped"] == 0 for line in updates)
        norms[precision] = updates[0]["grad_norm"]
    assert norms[dtype] == pytest.approx(norms["fp32"], rel=error)


@pytest.mark.parametrize("algorithm", ["tp_grpo", "shared_state"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_ratio_of_an_unmoved_policy_is_exactly_1(
    smoke: Smoke, dtype: str, algorithm: str, random_sd3: Path
) -> None:
    for fields in ({}, {"model__path": str(random_sd3), "sample__guidance_scale": 3.0}):
        bench = Bench(Settings.read(smoke(algorithm, model__dtype=dtype, **fields)))
        bench.roll_out()
        assert (bench.deviations() == 0).all()


@contextmanager
def deterministic() -> Iterator[None]:
    """Fused attention adds its gradients in any order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(smoke: Smoke) -> None:
    fields = {"train__max_ratio_dev": float("inf"), "sample__store_on_cpu": True}
    with deterministic():
        whole = smoke(run_name="whole", epochs=2, **fields)
        Trainer(whole).run()
        Trainer(smoke(run_name="halves", epochs=1, **fields)).run()
        halves = smoke(run_name="halves", epochs=2, **fields)
        Trainer(halves).run()
    first, second = (
        checkpoint.load(Path(c.output_dir) / c.run_name / "checkpoints" / "epoch-2")
        for c in (whole, halves)
    )
    assert all(torch.equal(first.weights[n], second.weights[n]) for n in first.weights)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises RuntimeError where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("algorithm", ["tp_grpo", "shared_state", "nft", "dgpo"])
def test_training_passes_do_not_wait(smoke: Smoke, algorithm: str, on_host: bool) -> None:
    fields = {"model__dtype": "bf16", "sample__store_on_cpu": on_host}
    bench = Bench(Settings.read(smoke(algorithm, **fields)))
    bench.roll_out()
    updater, advantages = bench.updater, [bench.advantage.to(bench.device)]
    for watched in (nullcontext, no_waiting):  # the first pass fills caches
        for column in range(bench.plan.columns):
            with watched():
                loss, _ = updater._micro_batch(
                    [bench.rollout], advantages, [(0, column)], fresh=True
                )
                updater.accelerator.backward(loss.value)


def test_rollouts_on_the_host_are_page_locked_and_equal(smoke: Smoke) -> None:
    kept = Bench(Settings.read(smoke(model__dtype="bf16")))
    sent = Bench(Settings.read(smoke(model__dtype="bf16", sample__store_on_cpu=True)))
    for bench in (kept, sent):
        bench.roll_out()
    torch.cuda.synchronize()
    states = sent.rollout.states  # type: ignore[union-attr]
    assert states.device.type == "cpu" and states.is_pinned()
    assert states[:, 0].is_contiguous()
    assert torch.equal(states, kept.rollout.states.cpu())  # type: ignore[union-attr]


def test_two_ranks_share_a_gpu_and_train_as_one(tmp_path: Path) -> None:
    """In a process that has not used the GPU, or its ranks could not be forked."""
    command = [sys.executable, "benchmarks/gpu.py", "--only", "two_processes", "--out", tmp_path]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row["relative difference"] < 1e-3, row
