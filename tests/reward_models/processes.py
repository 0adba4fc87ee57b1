"""A reward server as users start it: a process on a free port of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np

from reward_models.base import Scores, Unavailable
from reward_models.shapes import COLORS

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests"
START_SECONDS = 60.0
# Names of scorers
BRIGHTNESS, RAISES, SLOW = (f"tests.scorers:{name}" for name in ("Brightness", "Raises", "Slow"))
SHORT, SILENT = (f"{__name__}:{name}" for name in ("OneShort", "OutOfReach"))


class OneShort:
    """A scorer with a bug: it returns one score too few."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores(np.zeros(len(images) - 1, np.float32))


class OutOfReach:
    """A scorer whose server is down."""

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        raise Unavailable("the far end is silent")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """`python -m reward_models.server` with these scorers and arguments; it answers at `url`."""

    def __init__(
        self,
        scorers: Mapping[str, dict],
        *arguments: str,
        port: int = 0,
        token: str = "",
        log: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "reward_models.server", "--scorers", json.dumps(scorers)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "REWARD_TOKEN": token,
        }
        with open(log or os.devnull, "wb") as file:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *arguments],
                cwd=ROOT,
                env=environment,
                stderr=file,
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server exited with {self.process.returncode}"
            try:
                httpx.get(f"{self.url}/health", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        self.stop()
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        """Kill it, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(timeout=10)


def shapes_batch(n: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[dict]]:
    """n images with one noisy square each, of a random colour and place, and random captions."""
    random = np.random.default_rng(seed)
    images = np.full((n, 48, 48, 3), 235, dtype=np.uint8)
    names = list(COLORS)
    metadata = []
    for image in images:
        x, y, side = random.integers(2, 20), random.integers(2, 20), random.integers(6, 24)
        image[y : y + side, x : x + side] = np.array(COLORS[random.choice(names)]) * 255
        image += random.integers(0, 12, image.shape, dtype=np.uint8)
        shape, color = random.choice(["square", "circle"]), str(random.choice(names))
        metadata.append(
            {
                "objects": [
                    {"color": color, "shape": str(shape), "count": int(random.integers(1, 3))}
                ]
            }
        )
    return images, [f"image {i} of {seed}, \u00fc\u4e2d\U0001f600" for i in range(n)], metadata
