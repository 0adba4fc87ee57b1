"""Requests to a reward server, good ones and their parts."""

from __future__ import annotations

import httpx
import numpy as np
from safetensors.numpy import save

from reward_models import wire
from tests.reward_models.processes import BRIGHTNESS, TOKEN, ServerProcess

HEADER = {"Authorization": f"Bearer {TOKEN}"}
IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
TEXTS = {"prompts": '["a", "b"]', "metadata": "[{}, {}]"}
GOOD = wire.encode(IMAGES, ["a", "b"], [{}, {}])
LIMIT = 2**20


def post(
    server: ServerProcess, body: object, name: str = BRIGHTNESS, headers: dict | None = None
) -> httpx.Response:
    headers = HEADER if headers is None else headers
    return httpx.post(
        f"{server.url}/v1/score/{name}", content=body, headers=headers, trust_env=False, timeout=30
    )


def texts(**changed: str) -> bytes:
    return save({"images": IMAGES}, metadata={**TEXTS, **changed})
