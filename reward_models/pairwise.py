"""`pairwise`: a vision-language model says which of two images is better; the score is a win rate.

Pref-GRPO (arXiv 2508.20751): the reward of an image is the share of its group's other images that
it beats. The model, behind an OpenAI-compatible endpoint, sees two images and their prompt in each
question, and ends its answer with "Image 1 is better", "Image 2 is better" or "Neither is better".
"""

from __future__ import annotations

import base64
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from reward_models.base import Metadata, Scores, Unavailable
from reward_models.judge_base import URL, EndpointScorer, shrink
from reward_models.judge_endpoint import OutOfReach, RefusedImage
from reward_models.judge_marks import NoMark
from reward_models.wire import encode_png

if TYPE_CHECKING:
    from openai import OpenAI

Pair = tuple[int, int]  # the image shown first, and the second

# Matches "Image 1 is better", "**Image 2** is the better one" and "Neither image is better".
VERDICT = re.compile(
    r"\b(?:image\W*([12])\b\W*|neither\b(?:\W+image)?\W+)is\W+(?:(?:the|clearly|slightly)\W+)?better\b",
    re.IGNORECASE,
)
ASKS_FOR = "is better"  # what a question of the user's own must contain, in any case
# Other words would give other answers.
QUESTION = """Two images were generated for the prompt between the lines of dashes.
-----
{prompt}
-----
Which image is better? Judge two things with equal weight. Faithfulness: is everything there that \
the prompt asks for, in the number, colours, places, actions and style it asks for, and nothing \
that contradicts it? Quality: is the image sharp, coherent and free of distorted shapes? The order \
of the images means nothing.
Give your reasons in two sentences at most. Then end with exactly one of these three lines:
Image 1 is better
Image 2 is better
Neither is better"""


def pairs(n: int, opponents: int = 0) -> list[Pair]:
    """Which of n images meet: all n (n - 1) / 2 pairs, or n opponents / 2 of them.

    opponents: even, how many others each image meets; 0, or at least n - 1: all. The images stand
    in a ring and meet their neighbours, so each is shown first in half of its pairs, give or take
    one half, and the choice depends on nothing but n.
    """
    limited = 0 < opponents < n - 1
    reach = opponents // 2 if limited else (n - 1) // 2
    ring = [(i, (i + distance) % n) for distance in range(1, reach + 1) for i in range(n)]
    across = [] if limited or n % 2 else [(i, i + n // 2) for i in range(n // 2)]
    return ring + across


def verdict(answer: str) -> float:
    """The last verdict of an answer: 1 for image 1, 0 for image 2, 1/2 for neither; NaN if none."""
    verdicts = VERDICT.findall(answer)
    return {"1": 1.0, "2": 0.0, "": 0.5}[verdicts[-1]] if verdicts else float("nan")


class Pairwise(EndpointScorer):
    """score = the share of its comparisons that an image wins, in [0, 1]; its mean is 1/2.

    Where neither is better both win one half; equal images are not asked about, and neither is.
    The score of an image rests on the answers that there are, and is NaN without any. Extra:
    `answered`, the share of its comparisons that have a verdict.

    question: a text that asks for a verdict such as "Image 1 is better"; "{prompt}" in it stands
    for the prompt. "": this project's.
    opponents: how many images of its group each image is compared with, an even number; 0: all. A
    group of G images takes G (G - 1) / 2 questions, or G opponents / 2.
    max_tokens: of an answer; a model that thinks aloud needs more.
    others: see `EndpointScorer`.

    Raises ValueError as `EndpointScorer` does, for a question that asks for no verdict, and for an
    odd or negative number of opponents.
    """

    name = "pairwise"
    scores_groups = True

    def __init__(
        self,
        url: str = URL,
        model: str = "",
        question: str = "",
        opponents: int = 0,
        max_tokens: int = 512,
        **others: Any,
    ) -> None:
        self.max_tokens = max_tokens
        super().__init__(url, model, **others)
        if question and ASKS_FOR not in question.lower():
            raise ValueError(
                f"{self.name}: question = {question!r} asks for no verdict; it must ask for an "
                "answer such as 'Image 1 is better'"
            )
        if opponents < 0:
            raise ValueError(f"{self.name}: opponents = {opponents} must be a number of images")
        if opponents % 2:
            raise ValueError(
                f"{self.name}: opponents = {opponents} must be even, so that every image meets "
                f"equally many; the nearest are {opponents - 1} and {opponents + 1}"
            )
        self.question, self.opponents = question or QUESTION, opponents

    def __call__(  # type: ignore[override]
        self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], groups: np.ndarray
    ) -> Scores:
        """groups (B,) int64: equal for the images that are compared.

        A question that the endpoint refuses, does not answer in time or answers without a verdict
        counts for neither image, and the reason is kept. Raises as `EndpointScorer` does if all are
        refused or get no answer, if the endpoint is out of reach, and for wrong settings.
        """
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        met = [(r[i], r[j]) for r in members for i, j in pairs(len(r), self.opponents)]
        asked = [pair for pair in met if not np.array_equal(*images[list(pair)])]
        wins, reason = self._ask_all(images, prompts, asked)
        score, answered, all_met = (np.zeros(len(images)) for _ in range(3))
        for (first, second), win in (dict.fromkeys(met, 0.5) | wins).items():
            all_met[[first, second]] += 1
            if np.isfinite(win):
                answered[[first, second]] += 1
                score[[first, second]] += win, 1 - win
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an image without an answer
            return Scores(score / answered, {"answered": answered / all_met}, reason)

    def _ask_all(
        self, images: np.ndarray, prompts: list[str], asked: list[Pair]
    ) -> tuple[dict[Pair, float], str]:
        """What the first image of each pair wins, NaN if unknown; and why one is unknown."""
        client = self.endpoint.client()

        def ask(pair: Pair) -> float | Exception:
            try:
                return self._ask_pair(client, [pictures[i] for i in pair], prompts[pair[0]])
            except OutOfReach:
                raise
            except (RefusedImage, Unavailable, NoMark) as error:
                return error

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name) as pool:
            pictures = list(pool.map(self._picture, images))
            results = list(pool.map(ask, asked))
        failures = [result for result in results if isinstance(result, Exception)]
        errors = [failure for failure in failures if not isinstance(failure, NoMark)]
        if errors and len(errors) == len(results):
            raise next((e for e in errors if isinstance(e, Unavailable)), errors[0])
        reason = ""
        if failures:
            count = f"{len(failures)} of {len(results)} comparisons have no verdict"
            reason = f"{self.name}: {count}: {failures[0]}"
            logging.getLogger(__name__).warning(reason)
        wins = [np.nan if isinstance(result, Exception) else result for result in results]
        return dict(zip(asked, wins, strict=True)), reason

    def _picture(self, image: np.ndarray) -> dict[str, Any]:
        data = base64.b64encode(encode_png(shrink(image, self.image_size))).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def _ask_pair(self, client: OpenAI, pictures: list[dict[str, Any]], prompt: str) -> float:
        text = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
        messages = [{"role": "user", "content": [*pictures, text]}]
        answer = self.endpoint.ask(client, messages, self.max_tokens)
        win = verdict(answer.text)
        if np.isnan(win):
            why = NoMark("an answer does not say which image is better")
            raise NoMark(self._explain(why, answer))
        return win
