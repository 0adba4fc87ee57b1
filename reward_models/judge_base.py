"""A scorer that asks an OpenAI-compatible endpoint about each image; the judges' common part."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from reward_models.base import Metadata, Scores, Unavailable
from reward_models.check import Check
from reward_models.connection import check_remote
from reward_models.judge_endpoint import KEY, Answer, Endpoint, OutOfReach, RefusedImage
from reward_models.judge_marks import HIGHEST, Mark, NoMark
from reward_models.wire import encode_png

if TYPE_CHECKING:
    from openai import OpenAI

URL = "http://127.0.0.1:8000/v1"
SHOWN = 600  # characters of an answer that a message shows
# Fields of a request that the judge writes itself -> the option that changes them.
TAKEN = {
    "messages": "the question is an option of the scorer 'judge'",
    "model": "it is the option model",
    "max_tokens": "it is an option of the scorer 'judge'",
    "max_completion_tokens": "it is the option max_tokens of the scorer 'judge'",
    "logprobs": "it is an option of the scorer 'judge'",
    "top_logprobs": "it follows from the option logprobs",
    "stream": "answers are read whole",
    "n": "one answer is read",
}


class EndpointScorer:
    """Asks about each image and reads the mark in the answer.

    A subclass says what is asked (`messages`) and how an answer is read (`mark`).

    url: the endpoint, up to and including /v1. model: the name under which it is served.
    image_size: longest side of the image sent, in pixels; larger ones are shrunk; 0: none is.
    extra_body: more fields of the JSON request, such as {"seed": 1}.
    api_key: the NAME of the environment variable with the key; keys do not belong in configs. ""
    sends none, and neither does the default where it is not set.
    concurrency: questions asked at once. timeout: seconds an answer may take.
    attempts: tries of one question before it counts as unanswered.

    Raises ValueError for a missing model, for options out of range, and as `Endpoint` does.
    """

    name = ""
    max_tokens = 512  # of an answer
    logprobs = False  # whether they are asked for
    doctor = Check(
        packages=("openai", "httpx"),
        extra="judge",
        needs="an OpenAI-compatible endpoint: its url and model",
    )

    def __init__(
        self,
        url: str = URL,
        model: str = "",
        image_size: int = 0,
        extra_body: Mapping[str, Any] | None = None,
        api_key: str = KEY,
        concurrency: int = 16,
        timeout: float = 120.0,
        attempts: int = 3,
    ) -> None:
        if not model:
            advice = f"must name the model that {url} serves; {url}/models lists them"
            raise ValueError(f"{self.name}: model = '' {advice}")
        limits = {"concurrency": concurrency, "attempts": attempts, "max_tokens": self.max_tokens}
        check_remote(self.name, "url", url, URL, timeout=timeout, **limits)
        if image_size < 0:
            raise ValueError(
                f"{self.name}: image_size = {image_size} must be a number of pixels, or 0 for the "
                "image as it is"
            )
        fields = {} if extra_body is None else extra_body
        try:
            json.dumps(dict(fields), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"extra_body = {fields!r} must be what JSON can hold: {error}"
            raise ValueError(f"{self.name}: {reason}") from error
        for field in [field for field in TAKEN if field in fields]:
            raise ValueError(f"{self.name}: extra_body.{field} is not allowed: {TAKEN[field]}")
        self.image_size, self.concurrency = image_size, concurrency
        self.endpoint = Endpoint(self.name, url, model, api_key, timeout, attempts, fields)
        self.first_unmarked: str | None = None  # the first answer without a mark

    def messages(self, picture: dict[str, Any], prompt: str) -> list[dict[str, Any]]:
        """The messages of a request about `picture`, a part of a message's content."""
        raise NotImplementedError

    def mark(self, answer: Answer) -> Mark:
        """The mark of an answer, in [1, 5]. Raises NoMark."""
        raise NotImplementedError

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        """Marks / 5; the extra `mass`, with log-probabilities, is the probability of all levels.

        A single image that the endpoint refuses, does not answer in time or gives no mark is NaN,
        and the reason is kept. If all are refused or get no answer, raises Unavailable when some
        got none in time, else RuntimeError; if the endpoint is out of reach, Unavailable; for wrong
        settings, TypeError.
        """
        client = self.endpoint.client()

        def ask(image: np.ndarray, prompt: str) -> Answer | Exception:
            try:
                return self._ask(client, image, prompt)
            except OutOfReach:
                raise
            except (RefusedImage, Unavailable) as error:
                return error

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name) as pool:
            answers = list(pool.map(ask, images, prompts))
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and len(errors) == len(answers):
            raise next((e for e in errors if isinstance(e, Unavailable)), errors[0])
        marks, unmarked = [], []
        for answer in answers:
            try:
                marks.append(Mark(np.nan) if isinstance(answer, Exception) else self.mark(answer))
            except NoMark as why:
                marks.append(Mark(np.nan))
                unmarked.append(self._explain(why, answer))
        reasons = [f"{len(errors)} of {len(answers)} images: {errors[0]}"] if errors else []
        for reason in reasons:
            logging.getLogger(__name__).warning(reason)
        if unmarked:
            reasons.append(f"{self.name}: {len(unmarked)} of {len(answers)} answers: {unmarked[0]}")
        score = np.array([mark.value / HIGHEST for mark in marks], dtype=np.float32)
        mass = np.array([mark.mass for mark in marks], dtype=np.float32)
        return Scores(score, {"mass": mass} if self.logprobs else {}, "; ".join(reasons))

    def _ask(self, client: OpenAI, image: np.ndarray, prompt: str) -> Answer:
        data = base64.b64encode(encode_png(shrink(image, self.image_size))).decode()
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        messages = self.messages(picture, prompt)
        return self.endpoint.ask(client, messages, self.max_tokens, self.logprobs)

    def _explain(self, why: NoMark, answer: Any) -> str:
        """Why the answer has no mark; it shows the first such answer of this scorer."""
        if self.first_unmarked is None:
            cut_short = answer.cut and self.max_tokens > 1  # one token is all of an answer
            cut = f" (cut off after max_tokens = {self.max_tokens})" if cut_short else ""
            self.first_unmarked = f"{_shorten(answer.text)!r}{cut}"
        return f"{why}. The first such answer of {self.endpoint.model}: {self.first_unmarked}"

    def check(self, prompts: Sequence[str] = (), metadata: Sequence[Metadata] = ()) -> None:
        """Query the models that the endpoint serves, before a run; every prompt is accepted.

        Raises Unavailable when nothing answers, ValueError for a wrong key, url or model.
        """
        try:
            served = self.endpoint.models()
        except (TypeError, RefusedImage) as error:
            raise ValueError(str(error)) from error
        url, model = self.endpoint.url, self.endpoint.model
        if model not in served:
            known = ", ".join(served)
            raise ValueError(f"{self.name}: {url} does not serve {model!r}; it serves {known}")

    def close(self) -> None:
        """Close this process's connections."""
        self.endpoint.close()


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """The image (H, W, 3) uint8, its longest side at most `longest` pixels; 0: as it is."""
    height, width = image.shape[:2]
    if not longest or max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _shorten(text: str) -> str:
    """The text, without its middle if it is long."""
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]} [...] {text[-half:]}"
