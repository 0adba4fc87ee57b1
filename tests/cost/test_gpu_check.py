"""gpu_check.py on a CPU, on tiny checkpoints: it counts what it times, and the policy's ratio is 1."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo.cost import probe
from tp_grpo.models import architecture
from tp_grpo.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(smoke: Callable[..., ConfigDict], kind: str, path: Path) -> Settings:
    fields = {"sample__batch_size": 2, "train__beta": 1e-3}
    return Settings.read(smoke(model__type=kind, model__path=str(path), **fields))


def test_a_probe_counts_what_it_times(config: Settings) -> None:
    calls: list[int] = []
    build = architecture.build

    def counting(
        shapes: architecture.Architecture, model: object, device: torch.device = architecture.META
    ) -> object:
        backbone = build(shapes, model, device)
        forward = backbone.transformer.forward

        def count(**inputs: torch.Tensor) -> object:
            calls.append(len(inputs["hidden_states"]))
            return forward(**inputs)

        if device != architecture.META:  # the estimate of its FLOPs runs there
            backbone.transformer.forward = count
        return backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "build", counting)
        found = probe.probe(config, repeats=1)
    # Four steps, a window of two: 4 + 2 * 3 - 1 evaluations a trajectory; two rollouts (one warms up), three updates
    # (the first for the ratio, one warms up) of two steps, each with the reference's pass.
    assert found.nfe == 9 and found.images == 6
    assert sum(calls) == 2 * (2 * 9) + 3 * (2 * 2 * 2)
    assert found.ratio_dev == 0
    assert all(phase.seconds > 0 and phase.flops > 0 for phase in found.phases.values())
    assert config.sample.groups_per_epoch == 2, "the caller's config stays as it is"


def test_random_weights_have_the_checkpoints_shapes_and_schedule(
    config: Settings, path: Path
) -> None:
    shapes = architecture.read(config.model)
    backbone = architecture.build(shapes, config.model, torch.device("cpu"))
    saved = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    assert backbone.pipeline.scheduler.config.shift == saved["shift"]
    cond = architecture.conditions(shapes, config.model, 2, torch.device("cpu"))
    x = torch.randn(2, *backbone.latent_shape)
    assert backbone.velocity(x, backbone.sigmas(4)[1], cond, 2.0).isfinite().all()
    assert backbone.decode(x).shape == (2, 3, 48, 48)


def test_the_script_prints_a_table(path: Path, kind: str) -> None:
    command = [
        sys.executable,
        "scripts/gpu_check.py",
        "--config=config/tp_grpo.py:shapes_smoke",
        "--repeats=1",
    ]
    command += [f"--config.model.path={path}", f"--config.model.type={kind}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| rollout \| [\d.]+ \| [\d.]+ evaluations \|", done.stdout), done.stdout
    assert "ratio_dev 0.0e+00" in done.stdout
