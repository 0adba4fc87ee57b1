"""The reward server under load, and as it ends."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from reward_models import wire
from tests.reward_models.asking import GOOD, HEADER, post
from tests.reward_models.processes import BRIGHTNESS, SLOW, ServerProcess


def test_200_requests_at_once_lose_nothing_and_mix_nothing_up(server: ServerProcess) -> None:
    def body(i: int) -> bytes:
        images = np.full((3, 8, 8, 3), i, np.uint8)
        images[1] += 1
        images[2] += 2
        return wire.encode(images, ["a", "b", "c"], [{}] * 3)

    async def ask_all() -> list[list[float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            headers=HEADER, limits=limits, timeout=60, trust_env=False
        ) as client:
            url = f"{server.url}/v1/score/{BRIGHTNESS}"
            answers = await asyncio.gather(*(client.post(url, content=body(i)) for i in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json()["score"] for answer in answers]

    expected = [[float(np.float32(k / 255)) for k in (i, i + 1, i + 2)] for i in range(200)]
    np.testing.assert_allclose(asyncio.run(ask_all()), expected, rtol=1e-6)


def test_health_answers_while_a_slow_scorer_works(server: ServerProcess) -> None:
    worker = threading.Thread(
        target=lambda: [post(server, GOOD, SLOW) for _ in range(3)]
    )  # 0.3 s each
    worker.start()
    waits = []
    while worker.is_alive():
        start = time.monotonic()
        assert httpx.get(f"{server.url}/health", headers=HEADER, trust_env=False).status_code == 200
        waits.append(time.monotonic() - start)
    worker.join()
    # If it waited for the scorer, it would answer three times, 0.3 s apart.
    assert len(waits) > 6
    assert np.median(waits) < 0.2


def test_batches_of_clients_that_gave_up_are_not_scored(server: ServerProcess) -> None:
    def give_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/score/{SLOW}",
                content=GOOD,
                headers=HEADER,
                trust_env=False,
                timeout=0.2,
            )

    threads = [threading.Thread(target=give_up) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start = time.monotonic()
    assert post(server, GOOD, SLOW).status_code == 200
    assert time.monotonic() - start < 2, "twelve abandoned batches of 0.3 s were scored first"


def test_work_beyond_the_grace_of_a_termination_is_answered_503() -> None:
    server = ServerProcess({SLOW: {}}, "--grace", "1")
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
        for _ in range(10)  # 3 s of work
    ]
    for thread in threads:
        thread.start()
    while httpx.get(f"{server.url}/health", trust_env=False).json()["requests"] < 9:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    server.process.wait(timeout=20)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) == 10
    assert 3 <= len(refused) < 10
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["kind"] == "busy"
        assert "is stopping before this work is done" in answer.json()["error"]


def test_a_full_queue_answers_503_and_termination_finishes_running_batches(tmp_path: Path) -> None:
    server = ServerProcess({SLOW: {}}, "--queue", "2", log=tmp_path / "log")
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, refused = (
        sorted((a for a in answers if a.status_code == c), key=id) for c in (200, 503)
    )
    assert len(taken) >= 2
    assert len(taken) + len(refused) == 12
    assert len(refused) >= 1
    assert all(a.headers["Retry-After"] == "1" and a.json()["kind"] == "busy" for a in refused)
    assert post(server, GOOD, SLOW, {}).status_code == 200

    last = threading.Thread(target=lambda: answers.append(post(server, GOOD, SLOW, {})))
    last.start()
    while httpx.get(f"{server.url}/health", trust_env=False).json()["requests"] == 0:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    last.join()
    assert answers[-1].status_code == 200, "the running batch was finished"
    server.process.wait(timeout=20)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Finished server process" in log
