"""gpu_check.py on a CPU with tiny checkpoints: it counts what it times; the ratio is 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from tests.forked import printed
from tp_grpo.cost import probe
from tp_grpo.models import architecture
from tp_grpo.settings import Settings


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
        probed = probe.probe(config, repeats=1)
    # Four steps, a window of two: 4 + 2 * 3 - 1 evaluations a trajectory. Two rollouts (one
    # warms up), three updates (the ratio, to warm up) of two steps, with the reference's passes.
    assert probed.nfe == 9
    assert probed.images == 6
    assert sum(calls) == 2 * (2 * 9) + 3 * (2 * 2 * 2)
    assert probed.ratio_dev == 0
    assert all(phase.seconds > 0 and phase.flops > 0 for phase in probed.phases.values())
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
    model = (f"--config.model.path={path}", f"--config.model.type={kind}")
    table = printed("gpu_check", "--repeats=1", *model)
    assert re.search(r"\| rollout \| [\d.]+ \| [\d.]+ evaluations \|", table), table
    assert "ratio_dev 0.0e+00" in table
