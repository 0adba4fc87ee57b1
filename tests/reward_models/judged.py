"""A local endpoint that speaks OpenAI's format, and judges that ask it."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from reward_models import build
from reward_models.judge_base import EndpointScorer
from tests.reward_models.processes import free_port

NAN = float("nan")


class Endpoint:
    """Answers with `answer(pixel, question)`, a text or a whole response.

    pixel: the RGB values at the top left corner of the image.
    """

    def __init__(self) -> None:
        self.answer: Callable[[list[int], str], str | Response]
        self.forget()
        app = FastAPI()
        app.post("/v1/chat/completions")(self.complete)
        app.get("/v1/models")(self.models)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        end = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < end
            time.sleep(0.01)

    def forget(self) -> None:
        """Answer as a new one would."""
        self.answer = lambda pixel, question: "Final Score: 3"
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.sizes: list[tuple[int, int]] = []  # of the images, width and height
        self.seconds, self.running, self.most_running = 0.0, 0, 0

    async def models(self, request: Request) -> dict:
        self.headers.append(dict(request.headers))
        return {"object": "list", "data": [{"id": "eye-7b", "object": "model"}]}

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        parts = {part["type"]: part for part in body["messages"][0]["content"]}
        kind, _, data = parts["image_url"]["image_url"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        self.sizes.append(image.size)
        answer = self.answer(np.array(image)[0, 0].tolist(), parts["text"]["text"])
        return answer if isinstance(answer, Response) else completion(answer)


def completion(text: str, *tokens: tuple[str, dict[str, float]], cut: bool = False) -> Response:
    """A chat completion. tokens: each with the probabilities of its alternatives, itself first."""
    places = [
        {
            "token": token,
            "logprob": float(np.log(likely[token])),
            "bytes": None,
            "top_logprobs": [
                {"token": other, "logprob": float(np.log(p)), "bytes": None}
                for other, p in likely.items()
            ],
        }
        for token, likely in tokens
    ]
    choice = {
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": places} if tokens else None,
        "finish_reason": "length" if cut else "stop",
    }
    return JSONResponse({"choices": [choice]})


def refusal(message: str, param: str | None = None, status: int = 400) -> Response:
    """As OpenAI words one."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return JSONResponse({"error": error}, status)


def judge(endpoint: Endpoint, name: str = "judge", **options: object) -> EndpointScorer:
    scorer = build(name, url=endpoint.url, model="eye-7b", **{"timeout": 10, **options})
    assert isinstance(scorer, EndpointScorer)
    return scorer


def numbered(n: int) -> tuple[np.ndarray, list[str], list[dict]]:
    """n plain images, the red channel of each its number, with prompts and metadata."""
    images = np.zeros((n, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]
    return images, [f"prompt number {i}" for i in range(n)], [{}] * n
