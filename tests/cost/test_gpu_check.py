"""gpu_check.py on a CPU with tiny checkpoints: it counts what it times; the ratio is 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
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


def probed(config: Settings) -> tuple[probe.Probe, int]:
    """A probe of one repeat, and the rows that the transformer was called with."""
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
        return probe.probe(config, repeats=1), sum(calls)


def test_a_probe_counts_what_it_times(config: Settings) -> None:
    """Four steps, a window of two: 4 + 2 * 3 - 1 evaluations a trajectory, of two.

    Two rollouts (one warms up), three updates (the ratio, to warm up) of two steps, with the
    reference's passes.
    """
    measured, rows = probed(config)
    assert measured.evaluations == 2 * 9
    assert (measured.images, measured.trained) == (6, 4)
    assert rows == 2 * measured.evaluations + 3 * (2 * measured.trained)
    assert measured.ratio_dev == 0
    assert all(phase.seconds > 0 and phase.flops > 0 for phase in measured.phases.values())
    assert config.sample.groups_per_epoch == 2, "the caller's config stays as it is"


def test_a_probe_of_shared_states_counts_groups(config: Settings) -> None:
    """Two groups of four, forked at step 0: 1 + 4 * 3 evaluations each."""
    sample = replace(config.sample, groups="shared_state", group_size=4)
    credit = replace(config.credit, name="terminal")
    measured, rows = probed(replace(config, sample=sample, credit=credit))
    assert measured.evaluations == 2 * 13
    assert (measured.images, measured.trained) == (8, 2)
    assert rows == 2 * measured.evaluations + 3 * (2 * measured.trained)
    assert measured.ratio_dev == 0
    rollout = measured.phases["rollout"].flops
    assert rollout == pytest.approx(measured.phases["update"].flops * 13 / 4, rel=0.35)


def test_a_probe_of_noised_images_has_no_ratio(config: Settings) -> None:
    credit = replace(config.credit, name="terminal")
    objective = replace(config.objective, name="nft", timesteps=3)
    measured, _ = probed(replace(config, objective=objective, credit=credit))
    assert (measured.evaluations, measured.images, measured.trained) == (2 * 4, 2, 6)
    assert measured.ratio_dev is None


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
