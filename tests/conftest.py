"""Fixtures: tiny checkpoints saved to disk and loaded as a user's would be, and runs of seconds."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from config import awm, dgpo, elbo_pg, flow_grpo, nft, shared_state, tp_grpo
from tests import tiny_models
from tp_grpo import models

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # what a script starts with "&" ignores Ctrl-C, and so do its heirs
    signal.signal(signal.SIGINT, signal.default_int_handler)
ALGORITHMS = {
    module.__name__.removeprefix("config."): module
    for module in (tp_grpo, flow_grpo, shared_state, nft, elbo_pg, awm, dgpo)
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="kill runs 200 times instead of 20 (tests/faults)"
    )
    parser.addoption(
        "--moments",
        type=int,
        help="the seed of the moments they are killed at (default: another each time)",
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the random checkpoint of a `model.type`."""
    return functools.cache(lambda kind: tiny_models.SAVE[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def random_sd3(saved: Callable[[str], Path]) -> Path:
    return saved("sd3")


@pytest.fixture(scope="session")
def random_flux(saved: Callable[[str], Path]) -> Path:
    return saved("flux")


@pytest.fixture(params=tiny_models.SAVE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(kind: str, saved: Callable[[str], Path]) -> Path:
    return saved(kind)


@pytest.fixture
def load(kind: str, path: Path) -> Callable[..., Any]:
    """The backbone of that checkpoint on the CPU; model fields by name."""
    return lambda **fields: models.load(tiny_models.settings(path, kind, **fields), tiny_models.CPU)


@pytest.fixture
def smoke(tmp_path: Path) -> Callable[..., ConfigDict]:
    """A `shapes_smoke` config that writes below tmp_path; fields by dotted name."""

    def make(algorithm: str = "tp_grpo", **fields: object) -> ConfigDict:
        config = ALGORITHMS[algorithm].get_config("shapes_smoke")
        config.output_dir = str(tmp_path)
        config.update_from_flattened_dict(
            {name.replace("__", "."): value for name, value in fields.items()}
        )
        return config

    return make
