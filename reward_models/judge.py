"""Scores by a vision-language model behind an OpenAI-compatible endpoint (vLLM, sglang): `deqa` and `unifiedreward`.

The model is asked, an image at a time and in words of our own, for a mark from 1 to 5 after `Final Score:`; the score
is the last such mark / 5, so in [0.2, 1]. An answer without a mark on the scale is NaN, never 0.

Named after what they stand in for: DeQA-Score (arXiv 2501.11599), how good the picture is whatever it shows, and
UnifiedReward (arXiv 2503.05236), whether it shows what the prompt asks for, and how well. The latter's checkpoints
(CodeGoat24/UnifiedReward-*) speak this format; any other instruction-tuned vision-language model can be asked as well.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from reward_models.base import Metadata, Scores, Unavailable
from reward_models.check import Check
from reward_models.wire import encode_png

if TYPE_CHECKING:
    import httpx

LOWEST, HIGHEST = 1, 5
# "Final Score: 4", "**Final Score (1-5):** 4,5/5", "final score is <3>"; the last group is the scale where one is told.
MARK = re.compile(
    r"final\s+score\s*(?:\([^)\n]*\)(?=[\s*_]*(?:[:=]|is\b)))?"
    r"(?:</?\w+>|[\s*_:=\[($`<\"'“]|\\boxed\{|is\b)*(-?\d+(?:[.,]\d+)?)"
    r"(?:[\s*_>\"'”\])}$`]*(?:/|out\s+of)\s*(\d+))?",
    re.IGNORECASE,
)
TRY_AGAIN = (408, 429, 502, 503, 504)
SETTINGS = (301, 302, 307, 308, 401, 403, 404, 405)
SCALE = "1 = very poor, 2 = poor, 3 = fair, 4 = good, 5 = excellent; steps of a tenth are allowed"
ENDING = (
    "Give your reasons in two sentences at most. Then end with one line of exactly this form, with your own number:"
    "\nFinal Score: 3.5"
)

QUALITY = f"""You judge the technical quality of pictures. What the picture shows does not matter, nor does taste.
Look for blur, noise, compression blocks, banding, wrong exposure, garish or dull colours, and for broken or melted
detail such as a generated picture may have. Give one mark from {LOWEST} to {HIGHEST}: {SCALE}.
{ENDING}"""

ALIGNMENT = f"""A picture was generated for the prompt between the lines of dashes.
-----
{{prompt}}
-----
Judge two things with equal weight. Faithfulness: is everything there that the prompt asks for, in the number,
colours, places, actions and style it asks for, and nothing that contradicts it? Quality: is the picture sharp, coherent
and free of distorted shapes? Give one mark from {LOWEST} to {HIGHEST} for both together: {SCALE}.
{ENDING}"""


def parse_mark(answer: str) -> float:
    """The last `Final Score:` of an answer, divided by 5; NaN when there is none or it is not from 1 to 5."""
    marks = MARK.findall(answer)
    if not marks:
        return float("nan")
    number, scale = marks[-1]
    mark = float(number.replace(",", "."))
    on_scale = LOWEST <= mark <= HIGHEST and scale in ("", str(HIGHEST))
    return mark / HIGHEST if on_scale else float("nan")


class Judge:
    """Asks `question`, in which "{prompt}" stands for the image's prompt, about each image.

    url: the endpoint's, up to and with /v1. model: the name it serves. api_key: the NAME of the environment variable
    that holds the key; keys do not belong into configs. concurrency: questions under way at once. timeout: seconds an
    answer may take. attempts: tries of one question before Unavailable is raised. max_tokens: of an answer.
    """

    name = "judge"
    question = ""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000/v1",
        model: str = "",
        api_key: str = "JUDGE_API_KEY",
        concurrency: int = 16,
        timeout: float = 120.0,
        attempts: int = 3,
        max_tokens: int = 512,
    ) -> None:
        if not model:
            raise ValueError(
                f"{self.name}: model = '' must name the model that {url} serves; {url}/models lists them"
            )
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"{self.name}: url = {url!r} must be an address, as in 'http://127.0.0.1:8000/v1'"
            )
        numbers = {
            "concurrency": concurrency,
            "timeout": timeout,
            "attempts": attempts,
            "max_tokens": max_tokens,
        }
        for option, value in numbers.items():
            if value <= 0:
                raise ValueError(f"{self.name}: {option} = {value} must be above 0")
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"{self.name}: a judge needs httpx: pip install 'tp_grpo[server]'"
            ) from error
        self.url, self.model, self.api_key = url.rstrip("/"), model, api_key
        self.concurrency, self.timeout, self.attempts, self.max_tokens = (
            concurrency,
            timeout,
            attempts,
            max_tokens,
        )

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """Raises Unavailable when the endpoint is out of reach or too busy for every image, TypeError for settings it
        refuses, RuntimeError when it refuses every image; one image among others that it refuses, is too busy or slow
        for, or gives no mark is NaN.
        """
        return Scores(np.array(asyncio.run(self._marks(images, prompts)), dtype=np.float32))

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Ask the endpoint which models it serves, before a run: raises Unavailable when nobody answers, ValueError for
        a key or a model that will not do. Any prompt will do.
        """
        try:
            served = asyncio.run(self._models())
        except (TypeError, RefusedImage) as error:
            raise ValueError(str(error)) from error
        if self.model not in served:
            raise ValueError(
                f"{self.name}: {self.url} does not serve {self.model!r}; it serves {', '.join(served)}"
            )

    async def _models(self) -> list[str]:
        async with self._client() as client:
            reply = await self._send(client, "GET", "/models")
        return [str(entry["id"]) for entry in reply.get("data", []) if "id" in entry]

    async def _marks(self, images: np.ndarray, prompts: list[str]) -> list[float]:
        gate = asyncio.Semaphore(self.concurrency)
        failures: list[RefusedImage | Unavailable] = []

        async def mark(client: httpx.AsyncClient, image: np.ndarray, prompt: str) -> float:
            async with gate:
                try:
                    return parse_mark(await self._answer(client, image, prompt))
                except OutOfReach:
                    raise
                except (RefusedImage, Unavailable) as error:
                    failures.append(error)
                    return float("nan")

        async with self._client() as client:
            marks = await asyncio.gather(
                *(mark(client, *pair) for pair in zip(images, prompts, strict=True))
            )
        if failures and len(failures) == len(images):
            too_busy = next((error for error in failures if isinstance(error, Unavailable)), None)
            raise too_busy or RuntimeError(str(failures[0]))
        if failures:
            logging.getLogger(__name__).warning(
                "%d of %d images: %s", len(failures), len(images), failures[0]
            )
        return marks

    async def _answer(self, client: httpx.AsyncClient, image: np.ndarray, prompt: str) -> str:
        address = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": self.question.replace("{prompt}", prompt)},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        reply = await self._send(client, "POST", "/chat/completions", body)
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise TypeError(
                f"{self.name}: {self.url} answered something else than a chat completion"
            ) from error

    async def _send(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any = None
    ) -> dict[str, Any]:
        """One question, asked again after a pause while the endpoint is out of reach or overloaded."""
        for attempt in range(self.attempts):
            try:
                return await self._try(client, method, path, body)
            except Unavailable:
                if attempt == self.attempts - 1:
                    raise
                # The jitter keeps the questions of a batch from coming back all at once.
                await asyncio.sleep(2**attempt * random.uniform(0.25, 0.75))
        raise AssertionError("the last try returns or raises")

    async def _try(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any
    ) -> dict[str, Any]:
        import httpx

        try:
            response = await client.request(method, self.url + path, json=body)
        except httpx.TransportError as error:
            away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            said = f"{self.name}: no answer from {self.url} ({type(error).__name__}: {error})"
            raise (OutOfReach if away else Unavailable)(said) from error
        said = f"{self.name}: {self.url} answered {response.status_code}: {response.text[:300]}"
        if response.status_code in TRY_AGAIN:
            raise Unavailable(said)
        if response.status_code in SETTINGS:
            raise TypeError(said)
        if response.status_code != 200:
            raise RefusedImage(said)
        try:
            return dict(response.json())
        except (ValueError, TypeError) as error:
            raise TypeError(f"{said}, which is no JSON object") from error

    def _client(self) -> httpx.AsyncClient:
        """One a call: an AsyncClient belongs to one event loop, and every call has its own."""
        import httpx

        key = os.environ.get(self.api_key, "")
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.timeout, connect=min(10.0, self.timeout), pool=None),
            limits=httpx.Limits(max_connections=None),
            # A cluster's http_proxy is for endpoints in the world outside.
            trust_env=urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"),
        )


class OutOfReach(Unavailable):
    """Nobody takes the connection: no image of the batch has a chance, and all of them another one later."""


class RefusedImage(Exception):
    """The endpoint will not answer this question: too large an image, too long a prompt, a filter."""


class DeQA(Judge):
    """Technical quality of the image alone; the prompt is not looked at."""

    name, question = "deqa", QUALITY


class UnifiedReward(Judge):
    """Faithfulness to the prompt and quality, together."""

    name, question = "unifiedreward", ALIGNMENT


_CHECK = Check(
    packages=("httpx",), extra="server", needs="an OpenAI-compatible endpoint: its url and model"
)
CHECKS = {"deqa": _CHECK, "unifiedreward": _CHECK}
