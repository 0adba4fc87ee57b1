"""`judge` and `unifiedreward`: a vision-language model is asked for a mark from 1 to 5.

The model, behind an OpenAI-compatible endpoint (vLLM, sglang, ...), sees one image per question and
ends its answer with `Final Score:` and a mark. The score is the last such mark / 5, so it lies in
[0.2, 1]; an answer without a mark on the scale gives NaN, never 0.

With log-probabilities (`logprobs`) the mark is the mean of the marks 1 to 5 by their probabilities
at the place of the written one: two images with the same written mark then differ.
"""

from __future__ import annotations

from typing import Any

from reward_models.judge_base import URL, EndpointScorer
from reward_models.judge_endpoint import Answer
from reward_models.judge_marks import Mark, expected, written
from reward_models.judge_questions import question as question_of


class Judge(EndpointScorer):
    """Asks `question` about each image.

    question: `alignment` (how well the image shows its prompt, and its quality), `quality` (its
    technical quality alone), another name of `judge_questions`, or a text of your own: "{prompt}"
    in it stands for the prompt, and it must ask for a mark from 1 to 5 after 'Final Score:'.
    logprobs: read whole marks by the log-probabilities of the endpoint.
    max_tokens: of an answer; a model that thinks aloud needs more.
    others: see `EndpointScorer`.

    Raises ValueError as `EndpointScorer` does, and for a question that asks for no mark.
    """

    name = "judge"

    def __init__(
        self,
        url: str = URL,
        model: str = "",
        question: str = "alignment",
        logprobs: bool = False,
        max_tokens: int = 512,
        **others: Any,
    ) -> None:
        self.max_tokens, self.logprobs = max_tokens, logprobs
        super().__init__(url, model, **others)
        try:
            self.question = question_of(question, whole=self.logprobs)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def messages(self, picture: dict[str, Any], prompt: str) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
        return [{"role": "user", "content": [picture, text]}]

    def mark(self, answer: Answer) -> Mark:
        return expected(answer.text, answer.tokens) if self.logprobs else written(answer.text)


class UnifiedReward(Judge):
    """UnifiedReward (arXiv 2503.05236): its authors' pointwise question, the mark / 5.

    One mark from 1 to 5 for alignment and quality together, as the authors' script asks
    CodeGoat24/UnifiedReward-qwen-7b for it. Flow-GRPO's scorer of this name divides by 5 too; it
    asks UnifiedReward-7b-v1.5 `question="unifiedreward_flow_grpo"` about images of
    `image_size=512`, and scores an answer without a mark 0, where this one gives NaN.

    others: see `Judge`.
    """

    name = "unifiedreward"

    def __init__(
        self, url: str = URL, model: str = "", question: str = "unifiedreward", **others: Any
    ) -> None:
        super().__init__(url, model, question, **others)
