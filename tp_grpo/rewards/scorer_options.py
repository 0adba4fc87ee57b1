"""One entry of `rewards.scorers`: the scorer's weight, its thread's options and its own options."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from reward_models import Scorer, build, compares_groups, takes, target

PLACEMENTS = ("cuda", "offload", "cpu", "remote")
REMOTE = "reward_models.client:RemoteScorer"


@dataclass(frozen=True)
class ScorerOptions:
    """The options that every scorer takes.

    batch_size: images a call; 0: a whole batch. With `remote`, images a request.
    placement: where its model is; `offload`: on the GPU while it scores; "": the GPU if any.
    remote: URL of a reward server; several as a list, or in one text with commas.
    patience: seconds for which an unavailable scorer is retried; keep it below runtime.timeout_s,
        or the other ranks give up first.
    """

    batch_size: int = 0
    placement: str = ""
    remote: str | Sequence[str] = ""
    patience: float = 600.0

    def check(self, name: str) -> None:
        """Raises ValueError, naming the field, its value and what would do."""
        for mistake in self._mistakes(f"rewards.scorers.{name}"):
            raise ValueError(mistake)

    def _mistakes(self, where: str) -> Iterator[str]:
        size, remote, placement = self.batch_size, self.remote, self.placement
        if not is_number(size) or not isinstance(size, int) or size < 0:
            yield f"{where}.batch_size = {size!r} is not a whole number of at least 0"
        if not is_number(self.patience) or self.patience < 0:
            yield f"{where}.patience = {self.patience!r} is not a number of seconds, of at least 0"
        urls = [remote] if isinstance(remote, str) else remote
        if not (isinstance(urls, list | tuple) and urls and all(isinstance(u, str) for u in urls)):
            yield f"{where}.remote = {remote!r} is not the URL of a reward server or a list of them"
        placed = f"{where}.placement = {placement!r}"
        if placement and placement not in PLACEMENTS:
            yield f"{placed} is not one of {', '.join(PLACEMENTS)}"
        if placement == "remote" and not remote:
            yield f"{placed} needs {where}.remote, the URL of a reward server"
        if remote and placement not in ("", "remote"):
            yield f"{placed}, but {where}.remote = {remote!r}: drop one"
        if placement in ("cuda", "offload") and gpu() is None:
            yield f"{placed} needs a CUDA GPU; 'cpu' needs none"


class Entry(NamedTuple):
    """An entry of `rewards.scorers`: weight, the thread's options, the scorer's own options."""

    weight: float
    thread: ScorerOptions
    scorer: dict[str, Any]

    @classmethod
    def read(cls, name: str, value: Any) -> Entry:
        """From a weight or a dict of options. Raises ValueError for what shows without weights."""
        where = f"rewards.scorers.{name}"
        if not isinstance(value, Mapping) and not is_number(value):
            raise ValueError(
                f"{where} = {value!r} is not a number, the weight, nor a dict of options, as "
                "{'weight': 1.0}"
            )
        scorer = dict(value) if isinstance(value, Mapping) else {"weight": value}
        shared = {field.name for field in fields(ScorerOptions)} & scorer.keys()
        thread = ScorerOptions(**{option: scorer.pop(option) for option in shared})
        weight = scorer.pop("weight", 1.0)
        if not is_number(weight):
            raise ValueError(f"{where}.weight = {weight!r} is not a number")
        thread.check(name)
        if thread.remote and compares_groups([name]):
            raise ValueError(
                f"{where}.remote = {thread.remote!r}: {name} compares the images of a group, and a "
                "reward server is sent no groups; drop remote, to score in this process"
            )
        if not thread.remote:
            target(name)
            if thread.placement and (device := scorer.get("device", "auto")) != "auto":
                placed = f"{where}.placement = {thread.placement!r}"
                raise ValueError(f"{where}.device = {device!r}, but {placed}: drop one")
        if thread.remote and thread.batch_size and takes(REMOTE, "batch_size"):
            # The client cuts whole batches itself, to have several requests under way at once.
            scorer["batch_size"], thread = thread.batch_size, replace(thread, batch_size=0)
        return cls(float(weight), thread, scorer)

    def build(self, name: str) -> Scorer:
        """Raises ValueError as `reward_models.build` does."""
        remote = {"url": self.thread.remote, "name": name} if self.thread.remote else {}
        factory = REMOTE if remote else name
        size = self.thread.batch_size
        sized = {"batch_size": size} if size and takes(factory, "batch_size") else {}
        return build(factory, **remote, **sized, **self.scorer)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def gpu() -> torch.device | None:
    """This process's CUDA device; call it on the main thread: other threads see the first one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
