"""`remote` in a config: one server or several, and the requests to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from tests.reward_models.fakes import FakeServer
from tp_grpo.rewards.reward_set import RewardSet
from tp_grpo.settings import Settings

A, B, C = "http://a:8090", "http://b:8090", "http://c:8090"


RECIPE = """
from config import recipes

def get_config():
    config = recipes.build("tp_grpo", "turning_point", "shapes_smoke")
    config.run_name = "remote"
    with config.unlocked():
        config.rewards.scorers["shapes"] = {{"weight": 1.0, "remote": {remote!r}}}
    return config
"""


def urls_of(scorers: Any) -> tuple[str, ...]:
    scorer: Any = RewardSet(scorers).scorers["shapes"]
    urls: tuple[str, ...] = scorer.urls
    return urls


SHAPES = "--config.rewards.scorers.shapes.remote="


@pytest.mark.parametrize(
    "remote, arguments, urls",
    [
        (A, (), (A,)),
        ([A, B], (), (A, B)),
        ((A, B), (), (A, B)),
        (f"{A},{B}", (), (A, B)),
        (A, (f"{SHAPES}{B},{C}",), (B, C)),
        (f"{A},{B}", (f"{SHAPES}{C}",), (C,)),
        ((A, B), (f"{SHAPES}('{B}','{C}')",), (B, C)),
        (A, (f"--config.rewards.scorers={{'shapes': {{'remote': ['{B}', '{C}']}}}}",), (B, C)),
    ],
)
def test_several_servers_can_be_written_in_a_recipe_and_in_a_command(
    remote: Any,
    arguments: tuple[str, ...],
    urls: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE.format(remote=remote))
    command = ["train.py", f"--config={file}", *arguments]
    monkeypatch.setattr("sys.argv", command)  # ml_collections reads it, too
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    values(command)
    assert urls_of(Settings.read(values.config).rewards.scorers) == urls


@pytest.mark.parametrize("remote", [[], [A, 1]])
def test_what_is_no_list_of_addresses_is_refused(remote: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"remote = \[.*\] is not the URL .* or a list of them"):
        RewardSet({"shapes": {"remote": remote}})


@pytest.fixture
def servers() -> Iterator[list[FakeServer]]:
    fakes = [FakeServer(), FakeServer()]
    yield fakes
    for fake in fakes:
        fake.stop()


def test_the_batch_size_is_that_of_a_request_and_several_are_under_way(
    servers: list[FakeServer],
) -> None:
    for server in servers:
        server.seconds = 0.05
    urls = [server.url for server in servers]
    options = {"weight": 1.0, "remote": urls, "batch_size": 2, "in_flight": 3}
    rewards = RewardSet({"red": options})
    images = np.zeros((24, 2, 2, 3), np.uint8)
    images[..., 0] = np.arange(24)[:, None, None]
    total = rewards.score(images, [""] * 24, [{}] * 24).total
    rewards.close()
    assert total.tolist() == list(range(24))
    assert [server.most_running for server in servers] == [3, 3]
    assert {len(images) for server in servers for images in server.scored} == {2}


def test_a_run_waits_with_patience_only_when_no_server_answers(servers: list[FakeServer]) -> None:
    rewards = RewardSet({"red": {"remote": [server.url for server in servers], "patience": 30}})
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        servers[1].start()

    rewards.threads["red"]._sleep = wait
    batch: Any = (np.full((1, 2, 2, 3), 7, np.uint8), [""], [{}])
    servers[0].stop()
    assert rewards.score(*batch).total.tolist() == [7]
    assert waits == []
    servers[1].stop()
    assert rewards.score(*batch).total.tolist() == [7]
    assert len(waits) == 1
    rewards.close()
    servers[0].start()
