"""Memory of a GPU: the estimate's error, encoders that leave, a scorer that runs out."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import flow_grpo
from tests import tiny_models
from tests.rewards.test_scorer_thread import batch_of, run
from tp_grpo import models
from tp_grpo.cost.probe import Bench
from tp_grpo.models import architecture
from tp_grpo.settings import Settings

CUDA = torch.device("cuda")
MIDDLE = {"num_layers": 12, "num_attention_heads": 16, "caption_projection_dim": 1024}
MIDDLE |= {"dual_attention_layers": (0, 1, 2)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_memory_is_within_15_percent_of_the_estimate(checkpointing: bool) -> None:
    """Half of SD3.5-Medium's depth and two thirds of its width, 512 x 512, a batch of 4."""
    config = flow_grpo.get_config("pickscore_sd3_80gb")
    config.model.gradient_checkpointing = checkpointing
    config.sample.update(steps=4, window_size=2, batch_size=4)
    settings = Settings.read(config)
    published = architecture.read(settings.model)
    shapes = replace(published, transformer={**published.transformer, **MIDDLE})
    bench = Bench(settings, shapes)
    expected = bench.estimate()
    works = {"sample": bench.roll_out, "decode": bench.decode, "update": bench.update}
    for phase, work in works.items():
        work()
        _, measured = bench.measure(work, 1)
        parts = dict(expected.memory[phase])
        parts.pop("text encoders", None)  # nothing is encoded
        if phase != "update":
            parts.pop("optimizer")  # the first update makes it
        estimated = sum(parts.values())
        assert estimated == pytest.approx(measured, rel=0.15), (phase, parts)


@pytest.mark.parametrize("mode", ["offload", "resident"])
def test_offloaded_encoders_leave_the_device(mode: str, random_sd3: Path) -> None:
    fields = tiny_models.settings(random_sd3, "sd3", text_encoders=mode, dtype="bf16")
    backbone = models.load(fields, CUDA)
    backbone.encode(["a green triangle"])  # the libraries take their workspaces
    if mode == "resident":
        backbone.text._pipeline = None
        gc.collect()
    before = torch.cuda.memory_allocated()
    backbone.encode(["a red circle"])
    whole = backbone.text._pipeline
    parts = [getattr(whole, name) for name in backbone.text_parts]
    encoders = [part for part in parts if isinstance(part, torch.nn.Module)]
    there = {p.device.type for part in encoders for p in part.parameters()}
    assert encoders and there == {"cpu" if mode == "offload" else "cuda"}
    size = sum(p.numel() * p.element_size() for part in encoders for p in part.parameters())
    grown = torch.cuda.memory_allocated() - before
    assert grown < size / 2 if mode == "offload" else grown > size / 2


def test_a_scorer_that_runs_out_of_memory_gets_half_the_images() -> None:
    free = torch.cuda.mem_get_info()[0]
    calls: list[int] = []

    def greedy(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> np.ndarray:
        calls.append(len(images))
        torch.empty(len(images) * free // 3, dtype=torch.uint8, device=CUDA)
        return images[:, 0, 0, 0].astype(np.float32)

    score, _ = run(greedy, batch_of([5, 3, 9, 1]))  # type: ignore[arg-type]
    assert score == [5, 3, 9, 1]
    assert calls == [4, 2, 2]
