"""The text conditions of an epoch: each distinct prompt once, the next epoch's ahead of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from tp_grpo.models.base import Backbone
from tp_grpo.models.text import trimmed
from tp_grpo.types import cat, index, to


def encode_once(backbone: Backbone, prompts: Sequence[str]) -> dict[str, Any]:
    """The condition (leading dim 1, in host memory) of each distinct prompt."""
    distinct = list(dict.fromkeys(prompts))
    encoded = backbone.encode(distinct)
    return {prompt: trimmed(index(encoded, slice(i, i + 1))) for i, prompt in enumerate(distinct)}


def conditions_of(conditions: dict[str, Any], prompts: Iterable[str], device: torch.device) -> Any:
    """The conditions of these prompts as one batch on the device."""
    return to(cat([conditions[prompt] for prompt in prompts]), device)


class Conditions:
    """An epoch's conditions; a thread can encode the next epoch's during the update."""

    def __init__(self, backbone: Backbone, *, ahead: bool) -> None:
        """ahead: use that thread; encoders that move to the device for it raise the peak memory."""
        self.backbone, self.ahead = backbone, ahead
        self._ready: dict[str, Any] = {}

    def of(self, prompts: Sequence[str]) -> dict[str, Any]:
        """By prompt, as `encode_once`; whatever was encoded ahead is used here and then dropped."""
        ready, self._ready = self._ready, {}
        missing = [prompt for prompt in prompts if prompt not in ready]
        return ready | (encode_once(self.backbone, missing) if missing else {})

    @contextmanager
    def making(self, prompts: Sequence[str]) -> Iterator[None]:
        """Inside, a thread encodes these prompts; leaving waits for it and raises its exception."""
        if not (self.ahead and prompts):
            yield
            return
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
            future = thread.submit(encode_once, self.backbone, prompts)
            yield
        self._ready = future.result()
