"""A trained policy for the scripts that look at one."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import tp_grpo
from tp_grpo.trainer import Trainer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of seconds on the embedded model."""
    config = tp_grpo.get_config("shapes_smoke")
    config.output_dir, config.train.learning_rate = str(tmp_path_factory.mktemp("runs")), 1e-2
    return Trainer(config).run().parent
