"""Fixtures: tiny checkpoints saved to disk and loaded as a user's would be, and runs of seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from config import flow_grpo, tp_grpo
from tp_grpo.shapes import card
from tp_grpo.shapes.model import build_pipeline

torch.set_num_threads(1)
ALGORITHMS = {"tp_grpo": tp_grpo, "flow_grpo": flow_grpo}


@pytest.fixture(scope="session")
def random_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusion3Pipeline` folder with random weights; a shift, a scaling and biases that are not trivial."""
    folder = tmp_path_factory.mktemp("random-sd3")
    pipeline = build_pipeline(seed=3)
    pipeline.vae.register_to_config(shift_factor=0.3, scaling_factor=1.7)
    generator = torch.Generator().manual_seed(0)
    for parameter in pipeline.transformer.parameters():  # zero-initialised modulations would hide the conditions
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    card.save(pipeline, folder)
    return folder


@pytest.fixture
def smoke(tmp_path: Path) -> Callable[..., ConfigDict]:
    """A `shapes_smoke` config that writes below tmp_path; fields by dotted name."""

    def make(algorithm: str = "tp_grpo", **fields: object) -> ConfigDict:
        config = ALGORITHMS[algorithm].get_config("shapes_smoke")
        config.output_dir = str(tmp_path)
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return config

    return make
