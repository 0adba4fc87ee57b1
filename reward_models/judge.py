"""`deqa` and `unifiedreward`: a vision-language model behind an OpenAI-compatible endpoint.

The model (served by vLLM, sglang, ...) sees one image per question and is asked for a mark from 1
to 5 after `Final Score:`. The score is the last such mark / 5, so it lies in [0.2, 1]; an answer
without a mark on the scale gives NaN, never 0.

The names are those of the models these scorers stand in for: DeQA-Score (arXiv 2501.11599) rates
the technical quality of a picture, UnifiedReward (arXiv 2503.05236) how well it shows the prompt.
The questions are this project's, and any instruction-tuned vision-language model can answer them;
the UnifiedReward checkpoints (CodeGoat24/UnifiedReward-*) were trained on this form of answer.
"""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from reward_models.base import Metadata, Scores, Unavailable
from reward_models.check import Check
from reward_models.connection import TRY_AGAIN, Connections, check_remote
from reward_models.wire import encode_png

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")

LOWEST, HIGHEST = 1, 5
# Matches "Final Score: 4", "**Final Score (1-5):** 4,5/5" and "final score is <3>". The groups are
# the mark and, where the answer names one, the top of the scale.
MARK = re.compile(
    r"final\s+score\s*(?:\([^)\n]*\)(?=[\s*_]*(?:[:=]|is\b)))?"
    r"(?:</?\w+>|[\s*_:=\[($`<\"'“]|\\boxed\{|is\b)*(-?\d+(?:[.,]\d+)?)"
    r"(?:[\s*_>\"'”\])}$`]*(?:/|out\s+of)\s*(\d+))?",
    re.IGNORECASE,
)
SETTINGS = (301, 302, 307, 308, 401, 403, 404, 405)
SCALE = "1 = very poor, 2 = poor, 3 = fair, 4 = good, 5 = excellent; steps of a tenth are allowed"
# Other words, or other line breaks, would give other marks.
ENDING = """Give your reasons in two sentences at most. Then end with one line of exactly this \
form, with your own number:
Final Score: 3.5"""

QUALITY = f"""You judge the technical quality of pictures. What the picture shows does not matter, \
nor does taste.
Look for blur, noise, compression blocks, banding, wrong exposure, garish or dull colours, and for \
broken or melted
detail such as a generated picture may have. Give one mark from {LOWEST} to {HIGHEST}: {SCALE}.
{ENDING}"""

ALIGNMENT = f"""A picture was generated for the prompt between the lines of dashes.
-----
{{prompt}}
-----
Judge two things with equal weight. Faithfulness: is everything there that the prompt asks for, in \
the number,
colours, places, actions and style it asks for, and nothing that contradicts it? Quality: is the \
picture sharp, coherent
and free of distorted shapes? Give one mark from {LOWEST} to {HIGHEST} for both together: {SCALE}.
{ENDING}"""


def parse_mark(answer: str) -> float:
    """The last `Final Score:` of an answer, divided by 5; NaN if none or not between 1 and 5."""
    marks = MARK.findall(answer)
    if not marks:
        return float("nan")
    number, scale = marks[-1]
    mark = float(number.replace(",", "."))
    on_scale = LOWEST <= mark <= HIGHEST and scale in ("", str(HIGHEST))
    return mark / HIGHEST if on_scale else float("nan")


class OutOfReach(Unavailable):
    """The endpoint accepts no connection, so no image of the batch can be scored now."""


class RefusedImage(RuntimeError):
    """The endpoint refuses this question: the image or the prompt is too large, or filtered."""


class NoMark(RuntimeError):
    """An answer holds no mark on the scale."""


class Judge:
    """Asks `question`, with the prompt in place of "{prompt}", about each image.

    url: the endpoint, up to and including /v1. model: the name under which it is served.
    api_key: the NAME of the environment variable with the key; keys do not belong in configs.
    concurrency: questions asked at once. timeout: seconds an answer may take.
    attempts: tries of one question before it counts as unanswered. max_tokens: of an answer.
    """

    name = "judge"
    question = ""
    doctor = Check(
        packages=("openai", "httpx"),
        extra="judge",
        needs="an OpenAI-compatible endpoint: its url and model",
    )

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
            advice = f"must name the model that {url} serves; {url}/models lists them"
            raise ValueError(f"{self.name}: model = '' {advice}")
        limits = {"concurrency": concurrency, "attempts": attempts, "max_tokens": max_tokens}
        check_remote(self.name, "url", url, "http://127.0.0.1:8000/v1", timeout=timeout, **limits)
        try:
            import openai  # noqa: F401

            # A cluster's http_proxy is meant for endpoints on the internet.
            local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
            self._connections = Connections(timeout, trust_env=not local)
        except ImportError as error:
            needs = "a judge needs openai and httpx: pip install 'tp_grpo[judge]'"
            raise ValueError(f"{self.name}: {needs}") from error
        self.url, self.model, self.api_key = url.rstrip("/"), model, api_key
        self.concurrency, self.attempts, self.max_tokens = concurrency, attempts, max_tokens

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """A single image that the endpoint refuses, does not answer in time or gives no mark is
        NaN, and the first reason is kept. If all are refused or get no answer, raises Unavailable
        when some got none in time, else RuntimeError; if the endpoint is out of reach, Unavailable;
        for wrong settings, TypeError.
        """
        client = self._client()

        def mark(image: np.ndarray, prompt: str) -> float | Exception:
            try:
                answer = self._answer(client, image, prompt)
            except OutOfReach:
                raise
            except (RefusedImage, Unavailable) as error:
                return error
            value = parse_mark(answer)
            return value if np.isfinite(value) else NoMark(self._no_mark(answer))

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name) as pool:
            marks = list(pool.map(mark, images, prompts))
        failures = [result for result in marks if isinstance(result, Exception)]
        unanswered = [error for error in failures if not isinstance(error, NoMark)]
        if unanswered and len(unanswered) == len(marks):
            raise next((e for e in unanswered if isinstance(e, Unavailable)), unanswered[0])
        if unanswered:
            log = logging.getLogger(__name__)
            log.warning("%d of %d images: %s", len(unanswered), len(marks), unanswered[0])
        scores = [np.nan if isinstance(result, Exception) else result for result in marks]
        reason = str(failures[0]) if failures else ""
        return Scores(np.array(scores, dtype=np.float32), reason=reason)

    def _no_mark(self, answer: str) -> str:
        asked = f"{self.name}: an answer of {self.model} has no mark from {LOWEST} to {HIGHEST}"
        return f"{asked} after 'Final Score:'; it ends with {answer[-80:]!r}"

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Query the models that the endpoint serves, before a run; every prompt is accepted.

        Raises Unavailable when nothing answers, ValueError for a wrong key, url or model.
        """
        try:
            models = self._request(self._client().models.list)
            served = [model.id for model in getattr(models, "data", None) or []]
        except (TypeError, RefusedImage) as error:
            raise ValueError(str(error)) from error
        if self.model not in served:
            known = ", ".join(served)
            raise ValueError(
                f"{self.name}: {self.url} does not serve {self.model!r}; it serves {known}"
            )

    def close(self) -> None:
        """Close this process's connections."""
        self._connections.close()

    def _client(self) -> OpenAI:
        """A client that ignores the OPENAI_* variables: they are for another endpoint."""
        from openai import OpenAI

        http_client: Any = self._connections.client()  # openai 3 takes it, but declares httpx2's
        client = OpenAI(
            base_url=self.url,
            api_key=os.environ.get(self.api_key) or "none",
            max_retries=self.attempts - 1,
            http_client=http_client,
        )
        client.organization = client.project = None
        client._custom_headers = {}
        return client

    def _answer(self, client: OpenAI, image: np.ndarray, prompt: str) -> str:
        picture = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self.question.replace("{prompt}", prompt)},
        ]
        reply = self._request(
            client.chat.completions.create,
            model=self.model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=self.max_tokens,
        )
        try:
            return str(reply.choices[0].message.content or "")
        except (AttributeError, IndexError, TypeError) as error:
            raise TypeError(
                f"{self.name}: {self.url} answered with something other than a chat completion"
            ) from error

    def _request(self, request: Callable[..., T], **arguments: Any) -> T:
        """Raises OutOfReach, Unavailable, TypeError for wrong settings, or RefusedImage."""
        import httpx
        import openai

        headers = {} if os.environ.get(self.api_key) else {"Authorization": openai.Omit()}
        kind: type[Exception]
        try:
            return request(extra_headers=headers, **arguments)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            away = isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout)
            kind = OutOfReach if away else Unavailable
            reason = f"({type(cause).__name__}: {cause})"
            raise kind(f"{self.name}: no answer from {self.url} {reason}") from error
        except openai.APIStatusError as error:
            status, words = error.status_code, error.response.text[:300]
            kind = TypeError if status in SETTINGS else RefusedImage
            proxys = status >= 500 and "json" not in error.response.headers.get("content-type", "")
            kind = Unavailable if status in TRY_AGAIN or proxys else kind
            raise kind(f"{self.name}: {self.url} answered {status}: {words}") from error
        except ValueError as error:
            raise TypeError(f"{self.name}: {self.url} did not answer with JSON: {error}") from error


class DeQA(Judge):
    """Technical quality of the image alone; the prompt is not read."""

    name, question = "deqa", QUALITY


class UnifiedReward(Judge):
    """Faithfulness to the prompt and quality, with equal weight."""

    name, question = "unifiedreward", ALIGNMENT
