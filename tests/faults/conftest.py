"""How often and when a run is killed, and the run that never was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults import runs


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return 200 if request.config.getoption("--long") else 20


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> int:
    """A seed; printed where a test that draws from it fails."""
    seed = request.config.getoption("--moments")
    return int(random.SystemRandom().getrandbits(32) if seed is None else seed)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone; not to be written to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs.finish(folder, "run")
    return folder / "run"


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    folder = tmp_path_factory.mktemp("pair")
    runs.finish(folder, "run", runs.PAIR, ranks=2)
    return folder / "run"
