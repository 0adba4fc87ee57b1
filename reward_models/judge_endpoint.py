"""An OpenAI-compatible endpoint that answers questions about images, for the judges."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from reward_models.base import Unavailable
from reward_models.connection import TRY_AGAIN, Connections
from reward_models.judge_marks import Token
from reward_models.options import header_value

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

T = TypeVar("T")

SETTINGS = (301, 302, 307, 308, 401, 403, 404, 405)
LIMITS = ("max_tokens", "max_completion_tokens", "")  # names of the limit, "": none is sent
KEY = "JUDGE_API_KEY"  # the variable with the key, which may be unset, unless another is named
_NAME = re.compile(r"[A-Z_]+[0-9]{0,2}")  # the name of a variable and surely no key
TOP_LOGPROBS = 20  # the most that OpenAI allows, and vLLM unless it is started with another number
LOGPROBS = ("logprobs", "top_logprobs")
# A limit that this question exceeds is no field that the endpoint does not know.
EXCEEDED = re.compile(r"too (large|long|many)|context|exceed|at most", re.IGNORECASE)


class OutOfReach(Unavailable):
    """The endpoint accepts no connection, so no image of the batch can be scored now."""


class RefusedImage(RuntimeError):
    """The endpoint refuses this question: the image or the prompt is too large, or filtered."""


class RefusedField(RefusedImage):
    """The endpoint refuses the request because of the field `field`."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Form:
    """Which fields of a request the endpoint takes. limit: the name of the limit on tokens."""

    limit: str = LIMITS[0]
    temperature: bool = True

    def fields(self, max_tokens: int) -> dict[str, Any]:
        limit = {self.limit: max_tokens} if self.limit else {}
        return limit | ({"temperature": 0} if self.temperature else {})

    def without(self, field: str) -> Form | None:
        """The form to try after one with `field` was refused; None: there is no other."""
        if field == self.limit != "":
            return replace(self, limit=LIMITS[LIMITS.index(field) + 1])
        if field == "temperature" and self.temperature:
            return replace(self, temperature=False)
        return None

    def __str__(self) -> str:
        limit = f"{self.limit} for the limit" if self.limit else "no limit on the tokens"
        return f"{limit}, {'temperature 0' if self.temperature else 'its own temperature'}"


@dataclass(frozen=True)
class Answer:
    """text: what the model said. tokens: with log-probabilities, if they were asked for.

    cut: it ends because it reached the limit on tokens.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    cut: bool = False


class Endpoint:
    """The model `model` at `url`. Threads may share one.

    name: of the scorer, for messages. url: up to and including /v1. api_key: the NAME of the
    environment variable with the key. timeout: seconds an answer may take. attempts: tries of one
    question before it counts as unanswered. extra_body: more fields of every request.

    Raises ValueError if openai or httpx is missing, for a key that no header can hold, and if a
    variable other than KEY is named that is not set.
    """

    def __init__(
        self,
        name: str,
        url: str,
        model: str,
        api_key: str,
        timeout: float,
        attempts: int,
        extra_body: Mapping[str, Any],
    ) -> None:
        try:
            import openai  # noqa: F401

            # A cluster's http_proxy is meant for endpoints on the internet.
            local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
            self._connections = Connections(name, timeout, trust_env=not local)
        except ImportError as error:
            needs = "a judge needs openai and httpx: pip install 'tp_grpo[judge]'"
            raise ValueError(f"{name}: {needs}") from error
        self.name, self.url, self.model = name, url.rstrip("/"), model
        self.api_key, self.attempts, self.extra_body = api_key, attempts, dict(extra_body)
        self.form = Form()
        if not self.key() and api_key not in ("", KEY):
            shown = api_key if _NAME.fullmatch(api_key) else "the one that it names"
            raise ValueError(
                f"{name}: api_key must be the NAME of an environment variable that holds the key; "
                f"{shown} is not set"
            )

    def key(self) -> str:
        """The key, "" if there is none. Raises ValueError for one that no header can hold."""
        where = f"the environment's {self.api_key}"
        return header_value(self.name, where, os.environ.get(self.api_key, ""))

    def models(self) -> list[str]:
        """The models that it serves. Raises as `ask` does."""
        models = self._request(self.client().models.list)
        return [model.id for model in getattr(models, "data", None) or []]

    def ask(
        self,
        client: OpenAI,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int,
        logprobs: bool = False,
    ) -> Answer:
        """The answer to the messages. client: from `client`.

        A request that is refused because of its limit on tokens or its temperature is sent without
        them, and so are the later ones.

        Raises OutOfReach, Unavailable when no answer comes, RefusedImage for this question, and
        TypeError for wrong settings.
        """
        likely = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}
        form = self.form
        while True:
            try:
                reply = self._request(
                    client.chat.completions.create,
                    model=self.model,
                    messages=messages,
                    extra_body=self.extra_body,
                    **form.fields(max_tokens),
                    **likely,
                )
                break
            except RefusedField as refusal:
                if refusal.field in LOGPROBS:
                    raise TypeError(f"{refusal}; this scorer needs log-probabilities") from refusal
                other = form.without(refusal.field)
                if other is None:
                    raise
                form = other
        if form != self.form:
            self.form = form
            message = "%s: %s refused a field, so it is asked with %s from now on"
            logging.getLogger(__name__).warning(message, self.name, self.url, form)
        return self._read(reply, logprobs)

    def _read(self, reply: Any, logprobs: bool) -> Answer:
        try:
            choice = reply.choices[0]
            text = str(choice.message.content or "")
            content = getattr(getattr(choice, "logprobs", None), "content", None) or []
            tokens = tuple(
                Token(
                    place.token,
                    {place.token: place.logprob}
                    | {other.token: other.logprob for other in place.top_logprobs},
                )
                for place in content
            )
        except (AttributeError, IndexError, TypeError) as error:
            raise TypeError(
                f"{self.name}: {self.url} answered with something other than a chat completion"
            ) from error
        if logprobs and not tokens and text:
            raise TypeError(
                f"{self.name}: {self.url} answers without log-probabilities, which this scorer "
                "needs"
            )
        return Answer(text, tokens, getattr(choice, "finish_reason", None) == "length")

    def client(self) -> OpenAI:
        """A client that ignores the OPENAI_* variables: they are for another endpoint."""
        from openai import OpenAI

        http_client: Any = self._connections.client()  # openai 3 takes it, but declares httpx2's
        client = OpenAI(
            base_url=self.url,
            api_key=self.key() or "none",
            max_retries=self.attempts - 1,
            http_client=http_client,
        )
        client.organization = client.project = None
        client._custom_headers = {}
        return client

    def close(self) -> None:
        """Close this process's connections."""
        self._connections.close()

    def _request(self, request: Callable[..., T], **arguments: Any) -> T:
        """Raises OutOfReach, Unavailable, TypeError for wrong settings, or RefusedImage."""
        import httpx
        import openai

        headers = {} if self.key() else {"Authorization": openai.Omit()}
        try:
            return request(extra_headers=headers, **arguments)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            away = isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout)
            kind = OutOfReach if away else Unavailable
            reason = f"({type(cause).__name__}: {cause})"
            raise kind(f"{self.name}: no answer from {self.url} {reason}") from error
        except openai.APIStatusError as error:
            raise self._refusal(error, arguments) from error
        except ValueError as error:
            raise TypeError(f"{self.name}: {self.url} did not answer with JSON: {error}") from error

    def _refusal(self, error: APIStatusError, sent: Mapping[str, Any]) -> Exception:
        """The exception for a status that is not 200."""
        status, key = error.status_code, self.key()
        words = (error.response.text.replace(key, "...") if key else error.response.text)[:300]
        message = f"{self.name}: {self.url} answered {status}: {words}"
        proxys = status >= 500 and "json" not in error.response.headers.get("content-type", "")
        if status in TRY_AGAIN or proxys:
            return Unavailable(message)
        if status in SETTINGS:
            return TypeError(message)
        if status < 500 and (field := _refused_field(error, sent)):
            return RefusedField(message, field)
        return RefusedImage(message)


def _refused_field(error: APIStatusError, sent: Mapping[str, Any]) -> str:
    """The field that a refusal names first; "" if it names none that was sent and may be left."""
    words = error.response.text
    fields = [name for name in (*LIMITS[:2], "temperature", *LOGPROBS) if name in sent]
    param = error.body.get("param") if isinstance(error.body, dict) else None
    if EXCEEDED.search(words):
        return ""
    if param in fields:
        return str(param)
    places = {name: re.search(rf"\b{name}\b", words) for name in fields}
    found = {name: place.start() for name, place in places.items() if place}
    return min(found, key=lambda name: found[name]) if found else ""
