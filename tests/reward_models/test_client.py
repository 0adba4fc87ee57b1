"""The remote scorer: outages of the server, and what becomes of its answers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from reward_models import build
from reward_models.base import Unavailable
from reward_models.client import Refused, RemoteScorer
from reward_models.remote import Busy, refusal
from tests.reward_models.processes import (
    BRIGHTNESS,
    RAISES,
    SHORT,
    SILENT,
    SLOW,
    TOKEN,
    ServerProcess,
    free_port,
    shapes_batch,
)

IMAGES = np.full((2, 4, 4, 3), 51, np.uint8)
BATCH = (IMAGES, ["a", "b"], [{}, {}])


def remote(server: ServerProcess, name: str, **options: object) -> RemoteScorer:
    return RemoteScorer(server.url, name, **{"token": TOKEN, "timeout": 30, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("png", [False, True])
@pytest.mark.parametrize("batch_size", [32, 7])
def test_a_remote_scorer_gives_what_the_local_one_gives(
    server: ServerProcess, png: bool, batch_size: int
) -> None:
    batch = shapes_batch(20, seed=1)
    scorer = remote(server, "shapes", png=png, batch_size=batch_size)
    scorer.check(batch[1], batch[2])
    remote_scores, expected = scorer(*batch), build("shapes")(*batch)
    assert remote_scores.score.dtype == np.float32
    assert remote_scores.score.tobytes() == expected.score.tobytes()
    assert list(remote_scores.extras) == list(expected.extras)
    for name, values in expected.extras.items():
        np.testing.assert_array_equal(remote_scores.extras[name], values, strict=True)


def test_a_view_that_is_not_contiguous_travels_whole(server: ServerProcess) -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4).transpose(0, 2, 3, 1)
    expected = build(BRIGHTNESS)(images, *BATCH[1:]).score
    np.testing.assert_array_equal(remote(server, BRIGHTNESS)(images, *BATCH[1:]).score, expected)


def test_the_server_dies_in_mid_run_and_comes_back() -> None:
    batch = shapes_batch(6)
    server = ServerProcess({"shapes": {}})
    scorer = RemoteScorer(server.url, "shapes", timeout=30)
    try:
        expected = scorer(*batch).score
        server.stop()
        for _ in range(
            3
        ):  # the first meets a broken connection in the pool, the next cannot open one
            with pytest.raises(
                Unavailable, match=f"no answer from the reward server at {server.url}"
            ):
                scorer(*batch)
        with pytest.raises(Unavailable, match="python -m reward_models\\.server"):
            scorer.check()
        server = ServerProcess({"shapes": {}}, port=server.port)
        scorer.check()
        np.testing.assert_array_equal(scorer(*batch).score, expected)
    finally:
        server.stop()


def test_a_server_killed_during_a_batch_is_unavailable() -> None:
    server = ServerProcess({SLOW: {}})
    scorer = RemoteScorer(server.url, SLOW, timeout=30)
    scorer(*BATCH)
    timer = threading.Timer(0.15, server.process.kill)
    timer.start()
    with pytest.raises(Unavailable):
        scorer(*BATCH)
    timer.join()
    server.stop()


def test_a_late_answer_is_unavailable(server: ServerProcess) -> None:
    with pytest.raises(Unavailable, match="ReadTimeout"):
        remote(server, SLOW, timeout=0.1)(*BATCH)


@pytest.mark.parametrize(
    "name, options, error, words",
    [
        (BRIGHTNESS, {"token": "wrong"}, Refused, "401: this reward server asks for a token"),
        ("geneval", {}, Refused, "404: no scorer is called 'geneval' here; this server has shapes"),
        (
            RAISES,
            {},
            RuntimeError,
            "500: the scorer '.*Raises' failed with RuntimeError: the engine is out of fuel",
        ),
        (SHORT, {}, Refused, r"500: .* returned the score of shape \(1,\) for 2 images"),
        (SILENT, {}, Unavailable, "503: .*the far end is silent"),
    ],
)
def test_the_servers_message_is_in_the_exception(
    server: ServerProcess, name: str, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        remote(server, name, **options)(*BATCH)
    assert type(raised.value) is error


def test_a_request_above_the_limit_is_refused_and_a_smaller_one_passes(
    server: ServerProcess,
) -> None:
    images = np.zeros((4, 400, 400, 3), np.uint8)  # 1.9 MB; the server takes 1 MiB
    texts = (["a"] * 4, [{}] * 4)
    with pytest.raises(RuntimeError, match=r"413: .* above the 1048576"):
        remote(server, BRIGHTNESS)(images, *texts)
    assert remote(server, BRIGHTNESS, batch_size=2)(images, *texts).score.tolist() == [0, 0, 0, 0]


def test_check_names_what_is_wrong_before_a_run(server: ServerProcess) -> None:
    with pytest.raises(ValueError, match="asks for a token"):
        remote(server, "shapes", token="wrong").check()
    with pytest.raises(ValueError, match=r"has no scorer 'geneval'; it has shapes"):
        remote(server, "geneval").check()


def test_threads_share_one_scorer_and_each_gets_its_answers(server: ServerProcess) -> None:
    scorer = remote(server, BRIGHTNESS)

    def ask(i: int) -> float:
        return float(scorer(np.full((1, 4, 4, 3), i, np.uint8), ["a"], [{}]).score[0])

    with ThreadPoolExecutor(32) as pool:
        scores = list(pool.map(ask, range(200)))
    np.testing.assert_allclose(scores, np.arange(200) / 255, rtol=1e-6)


def test_a_forked_child_opens_new_connections(server: ServerProcess) -> None:
    scorer = remote(server, BRIGHTNESS)
    scorer(*BATCH)
    parent = scorer.servers[0]._connections.client()
    child = os.fork()
    if child == 0:
        os._exit(
            0
            if scorer.servers[0]._connections.client() is not parent
            and scorer(*BATCH).score[0] == np.float32(0.2)
            else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert scorer(*BATCH).score[0] == np.float32(0.2)


def test_the_token_comes_from_the_environment(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    RemoteScorer(server.url, "shapes").check()


def test_the_proxy_of_a_cluster_is_not_used(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    remote(server, "shapes").check()


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>It works!</html>",
        b"[]",
        b"{}",
        b'{"score": [1.0], "extras": {}}',
        b'{"score": ["a", 1], "extras": {}}',
    ],
)
def test_another_kind_of_server_is_recognised(reply: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    stranger = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=stranger.serve_forever, kwargs={"poll_interval": 0.01}).start()
    scorer = RemoteScorer(f"http://127.0.0.1:{stranger.server_port}", "shapes", timeout=5)
    try:
        with pytest.raises(Refused, match="the reply"):
            scorer(*BATCH)
        with pytest.raises(ValueError, match="is not a reward server"):
            scorer.check()
    finally:
        stranger.shutdown()
        stranger.server_close()


@pytest.mark.parametrize(
    "status, reply, kind",
    [
        (500, None, Unavailable),  # a proxy's page, or uvicorn's
        (500, {"detail": "Internal Server Error"}, Unavailable),
        (500, {"error": "stopping", "kind": "busy"}, Busy),
        (520, None, Unavailable),
        (500, {"error": "no engine", "kind": "programming"}, Refused),
        (500, {"error": "odd image", "kind": "data"}, RuntimeError),
        (413, None, RuntimeError),  # a proxy that takes smaller bodies only
        (404, None, Refused),
    ],
)
def test_a_5xx_that_is_not_a_reward_servers_is_tried_again(
    status: int, reply: object, kind: type[Exception]
) -> None:
    error = refusal("http://server", status, reply)
    assert type(error) is kind
    assert f"http://server answered {status}: " in str(error)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            {"url": "127.0.0.1:8090"},
            "remote = '127.0.0.1:8090' must be an address, as in 'http://127.0.0.1:8090'",
        ),
        ({"url": "http://127.0.0.1:8090", "timeout": 0}, "timeout = 0"),
        ({"url": "http://127.0.0.1:8090", "batch_size": 0}, "batch_size = 0"),
        ({"url": "http://127.0.0.1:8090", "in_flight": 0}, "in_flight = 0"),
        ({"url": []}, r"remote = \[\] names no address"),
        ({"url": " , "}, "names no address"),
        ({"url": "http://a,http://b,http://a/"}, "names http://a twice"),
        ({"url": ["http://a", "b:8090"]}, "remote = 'b:8090' must be an address"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteScorer(name="shapes", **arguments)


@pytest.mark.parametrize(
    "images, metadata",
    [
        (IMAGES.astype(np.float32), [{}, {}]),
        (IMAGES[0], [{}, {}]),
        (IMAGES, [{}, {"sizes": {1, 2}}]),
    ],
)
def test_a_batch_that_cannot_be_sent_is_a_programming_error(
    images: np.ndarray, metadata: list[dict]
) -> None:
    with pytest.raises(TypeError):
        RemoteScorer("http://127.0.0.1:9", "shapes")(images, ["a", "b"], metadata)
