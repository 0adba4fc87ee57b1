"""`deqa`: DeQA-Score (arXiv 2501.11561), the technical quality of an image by level words.

The model is asked how it would rate the quality, its answer is begun for it, and the score is read
from the probabilities of its next word: the mean of excellent 5, good 4, fair 3, poor 2 and bad 1
by the softmax over these five words, as the authors' scorer computes it. It is divided by 5, as
the deqa scorer of Flow-GRPO does it, so it lies in [0.2, 1]. The prompt is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward_models.judge_base import URL, EndpointScorer
from reward_models.judge_endpoint import Answer
from reward_models.judge_marks import Mark, NoMark, mean_level

LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
QUESTION = "How would you rate the quality of this image?"
BEGINNING = "The quality of the image is"
# vLLM and sglang then continue the last message instead of beginning a new one.
CONTINUES = {"add_generation_prompt": False, "continue_final_message": True}
IN_WORDS = "a model that answers in words is asked by the scorer 'judge' with question='quality'"


class DeQA(EndpointScorer):
    """The mean level / 5, from the log-probabilities of the word after BEGINNING.

    The extra `mass` is the probability of the five words together: near 1 for a model trained on
    them. An image with less than half is NaN, for then the model was about to say something else.
    Only the 20 likeliest words are known; one that is not among them counts as impossible.

    extra_body: by default what makes vLLM and sglang continue the begun answer; yours is added.
    others: see `EndpointScorer`.

    Raises ValueError as `EndpointScorer` does, and TypeError for other options.
    """

    name, max_tokens, logprobs = "deqa", 1, True

    def __init__(
        self,
        url: str = URL,
        model: str = "",
        image_size: int = 0,
        extra_body: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        for option in ("max_tokens", "question", "logprobs"):
            if option in others:
                raise TypeError(
                    f"it has no {option}, for it reads one word's probabilities; {IN_WORDS}"
                )
        super().__init__(url, model, image_size, extra_body, **others)
        self.endpoint.extra_body = CONTINUES | self.endpoint.extra_body

    def messages(self, picture: dict[str, Any], prompt: str) -> list[dict[str, Any]]:
        text = {"type": "text", "text": f"{QUESTION}\n"}  # the image follows, as published
        return [
            {"role": "user", "content": [text, picture]},
            {"role": "assistant", "content": BEGINNING},
        ]

    def mark(self, answer: Answer) -> Mark:
        alternatives = answer.tokens[0].alternatives if answer.tokens else {}
        try:
            return mean_level(alternatives, LEVELS)
        except NoMark as error:
            raise NoMark(f"{error} after {BEGINNING!r}; {IN_WORDS}") from error
