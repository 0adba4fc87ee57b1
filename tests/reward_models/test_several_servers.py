"""A remote scorer of several servers: who gets which request, and what an outage changes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from reward_models import build, remote
from reward_models.base import Scores, Unavailable
from reward_models.client import RemoteScorer
from tests.reward_models.fakes import BUSY, DATA, PROXY, FakeServer
from tests.reward_models.processes import ServerProcess, free_port


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeServer]]:
    monkeypatch.delenv("RANK", raising=False)
    fakes = [FakeServer(), FakeServer()]
    yield fakes
    for fake in fakes:
        fake.stop()


def scorer_of(servers: list[FakeServer], **options: object) -> RemoteScorer:
    urls = [server.url for server in servers]
    return RemoteScorer(urls, "red", **{"timeout": 10, "batch_size": 4, **options})  # type: ignore[arg-type]


def score(scorer: RemoteScorer, n: int) -> Scores:
    """The scores of n images, each red as its number."""
    images = np.zeros((n, 2, 2, 3), np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]
    return scorer(images, [""] * n, [{}] * n)


def check_scores(scores: Scores, n: int) -> None:
    np.testing.assert_array_equal(scores.score, np.arange(n, dtype=np.float32), strict=True)
    np.testing.assert_array_equal(scores.extras["double"], 2 * scores.score)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_scores_are_in_order_whatever_the_servers_and_requests(
    servers: list[FakeServer], number: int, in_flight: int
) -> None:
    servers[0].seconds = 0.02  # answers overtake each other
    check_scores(score(scorer_of(servers[:number], in_flight=in_flight), 21), 21)
    requests = sorted(images for server in servers[:number] for images in server.scored)
    assert requests == [list(range(i, min(i + 4, 21))) for i in range(0, 21, 4)], "one cut for all"


@pytest.mark.parametrize("in_flight", [1, 3])
def test_in_flight_limits_the_requests_at_once_to_each_server(
    servers: list[FakeServer], in_flight: int
) -> None:
    for server in servers:
        server.seconds = 0.05
    score(scorer_of(servers, in_flight=in_flight), 48)
    assert [server.most_running for server in servers] == [in_flight] * 2


def test_a_faster_server_gets_more_requests(servers: list[FakeServer]) -> None:
    servers[0].seconds = 0.3
    check_scores(score(scorer_of(servers, in_flight=1), 48), 48)
    assert len(servers[0].scored) < len(servers[1].scored)


@pytest.mark.parametrize("rank, first", [("0", 0), ("1", 1), ("3", 1), ("4", 0), ("", 0)])
def test_ranks_begin_with_different_servers(
    servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch, rank: str, first: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    scorer = scorer_of(servers)
    for _ in range(3):
        check_scores(score(scorer, 4), 4)  # one request
    assert [len(server.scored) for server in servers] == [3 * (first == 0), 3 * (first == 1)]


def test_a_text_with_commas_names_several(servers: list[FakeServer]) -> None:
    scorer = RemoteScorer(f"{servers[0].url}/, {servers[1].url}", "red")
    assert scorer.urls == (servers[0].url, servers[1].url)


@pytest.mark.parametrize("outage", [None, BUSY, PROXY, (503, None)])
@pytest.mark.parametrize("n", [4, 40])
def test_the_others_take_over_from_a_server_that_does_not_score(
    servers: list[FakeServer], outage: tuple | None, n: int, caplog: pytest.LogCaptureFixture
) -> None:
    if outage is None:
        servers[0].stop()
    servers[0].refusal = outage
    scorer = scorer_of(servers)
    check_scores(score(scorer, n), n)
    tried = len(servers[0].scored)
    assert tried <= 2, "in_flight"
    check_scores(score(scorer, n), n)
    assert len(servers[0].scored) == tried, "it is left out"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert servers[0].url in warning and "left out until it answers again" in warning
    if outage is None:
        servers[0].start()


def test_a_server_that_comes_back_is_used_again(
    servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_REST", 0.02)
    servers[0].stop()
    scorer = scorer_of(servers)
    for _ in range(5):
        check_scores(score(scorer, 4), 4)
        time.sleep(0.03)
    assert not scorer.servers[0].awake
    servers[0].start()
    wait_for(lambda: scorer.servers[0].probe() or scorer.servers[0].awake)
    assert servers[0].healths >= 1
    assert not servers[0].scored, "no images before it answered"
    check_scores(score(scorer, 4), 4)
    assert servers[0].scored == [[0, 1, 2, 3]]
    servers[0].stop()
    score(scorer, 4)
    servers[0].start()
    wait_for(lambda: score(scorer, 4) and scorer.servers[0].awake)  # each call probes


def test_a_resting_server_is_asked_when_the_others_fail(servers: list[FakeServer]) -> None:
    servers[0].refusal = BUSY
    scorer = scorer_of(servers)
    score(scorer, 4)
    servers[0].refusal, servers[1].refusal = None, BUSY
    check_scores(score(scorer, 40), 40)


def test_when_no_server_scores_all_are_named_and_asked_again_at_the_next_call(
    servers: list[FakeServer],
) -> None:
    servers[0].refusal, servers[1].refusal = BUSY, PROXY
    scorer = scorer_of(servers)
    words = f"{servers[0].url} answered 503: 256 requests .*; {servers[1].url} answered 502"
    with pytest.raises(Unavailable, match=words):
        score(scorer, 40)
    asked = [len(server.scored) for server in servers]
    servers[0].refusal = servers[1].refusal = None
    servers[0].seconds = servers[1].seconds = 0.05  # so that neither does all
    check_scores(score(scorer, 40), 40)
    assert len(servers[0].scored) > asked[0] and len(servers[1].scored) > asked[1]


def test_a_batch_that_a_scorer_cannot_score_is_not_sent_on(servers: list[FakeServer]) -> None:
    servers[0].refusal = servers[1].refusal = DATA
    with pytest.raises(RuntimeError, match="500: odd image") as raised:
        score(scorer_of(servers), 400)
    assert type(raised.value) is RuntimeError
    assert sum(len(server.scored) for server in servers) <= 4, "no more than were under way"


@pytest.mark.parametrize(
    "failures, pauses", [(4, [1, 2, 4, 8]), (7, [1, 2, 4, 8, 16, 30, 30]), (2000, None)]
)
def test_the_pauses_between_probes_grow_to_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, failures: int, pauses: list[float] | None
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    server = remote.RemoteServer("http://127.0.0.1:9", "red", "", 1, False)
    due = []
    for _ in range(failures):
        server.rest(Unavailable("no answer"))
        due.append(server._due - 100)
    assert due == pauses or (due[-1] == 30 and pauses is None)
    server.rest(remote.Busy("full", 3))
    assert server._due == 103, "a busy one says when"


def test_check_asks_every_server(
    servers: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    scorer_of(servers).check()
    assert [server.healths for server in servers] == [1, 1]
    assert not caplog.records
    servers[1].scorer = "blue"
    with pytest.raises(ValueError, match=f"{servers[1].url} has no scorer 'red'; it has blue"):
        scorer_of(servers).check()


def test_a_server_that_is_dead_at_the_start_is_a_warning(
    servers: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    scorer = RemoteScorer([dead, servers[0].url], "red", batch_size=4)
    with caplog.at_level(logging.WARNING):
        scorer.check()
    (record,) = caplog.records
    assert f"no answer from the reward server at {dead}" in record.getMessage()
    assert record.getMessage().endswith("The run begins with the other 1 of 2 servers")
    assert [server.awake for server in scorer.servers] == [False, True]
    check_scores(score(scorer, 9), 9)
    other = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"at {dead} .*; no answer .* at {other} "):
        RemoteScorer([dead, other], "red").check()


def test_servers_with_other_options_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fakes = [FakeServer(scoring="fixed"), FakeServer(scoring="reference")]
    scorer_of(fakes).check()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"red: {fakes[0].url} has the options {{'scoring': 'fixed'}}, {fakes[1].url} has "
        "{'scoring': 'reference'}; their scores may differ"
    )
    for fake in fakes:
        fake.stop()


def test_one_of_two_processes_is_killed_during_a_batch_and_no_score_is_lost() -> None:
    slow = "tests.scorers:Slow"
    processes = [ServerProcess({slow: {}}), ServerProcess({slow: {}})]
    try:
        urls = [process.url for process in processes]
        scorer = RemoteScorer(urls, slow, timeout=30, batch_size=2)
        scorer.check()
        images = np.arange(24, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
        images = images.repeat(3, 3)
        expected = build("tests.scorers:Brightness")(images, [""] * 24, [{}] * 24).score
        timer = threading.Timer(0.4, processes[0].process.kill)
        timer.start()
        scores = scorer(images, [""] * 24, [{}] * 24).score
        timer.join()
        np.testing.assert_array_equal(scores, expected)
        assert [server.awake for server in scorer.servers] == [False, True]
    finally:
        for process in processes:
            process.stop()
