"""One reward server and one judge's endpoint for all tests that leave them running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reward_models.judged import Endpoint
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


@pytest.fixture(scope="session")
def running_endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.should_exit = True
    endpoint.thread.join()


@pytest.fixture
def endpoint(running_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    running_endpoint.forget()
    return running_endpoint
