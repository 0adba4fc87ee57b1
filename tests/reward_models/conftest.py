"""One reward server for all tests that leave it running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reward_models.processes import (
    BRIGHTNESS,
    RAISES,
    SHORT,
    SILENT,
    SLOW,
    TOKEN,
    ServerProcess,
)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    names = ("shapes", BRIGHTNESS, SLOW, SHORT, SILENT)
    scorers = {name: {} for name in names} | {RAISES: {"calls": 0}}
    process = ServerProcess(scorers, "--max-body", "1", token=TOKEN)
    yield process
    process.stop()
