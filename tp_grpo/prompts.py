"""Prompt sets, and which prompts an epoch visits. Stands alone: files or a generator in, `PromptBatch`es out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tp_grpo.types import PromptBatch


@dataclass(frozen=True)
class PromptSet:
    """Prompts with their metadata (what a scorer needs beside the words); a group's id is the index here."""

    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, ids: Sequence[int], members: Sequence[int]) -> PromptBatch:
        """The samples (ids[b], members[b])."""
        return PromptBatch(
            prompts=[self.prompts[i] for i in ids],
            metadata=[self.metadata[i] for i in ids],
            group_id=torch.as_tensor(ids, dtype=torch.int64),
            member=torch.as_tensor(members, dtype=torch.int64),
        )


def load(source: str, *, field: str) -> PromptSet:
    """Read a .txt (a prompt a line), a .jsonl (objects with "prompt") or a "module:function" giving (prompt, metadata).

    Raises ValueError, naming the config field and, for a bad line, file:line.
    """
    if not source:
        raise ValueError(f"{field} is empty: name a .txt or .jsonl file, or a module:function")
    pairs = _read_file(Path(source), field) if Path(source).suffix in (".txt", ".jsonl") else _call(source, field)
    if not pairs:
        raise ValueError(f"{field} = {source!r} holds no prompts")
    return PromptSet([prompt for prompt, _ in pairs], [metadata for _, metadata in pairs])


def epoch_groups(n: int, *, seed: int, epoch: int, groups: int) -> list[int]:
    """The prompts of an epoch: passes over a set of n in an order keyed by (seed, pass), no prompt twice in an epoch.

    Raises ValueError when the epoch wants more groups than there are prompts.
    """
    if groups > n:
        raise ValueError(
            f"sample.groups_per_epoch = {groups}, but prompts.train holds {n} prompts; give at least {groups}, or "
            f"at most {n} groups"
        )
    epochs_a_pass = n // groups
    shuffle, position = divmod(epoch, epochs_a_pass)
    order = np.random.default_rng([seed, shuffle]).permutation(n)
    chosen: list[int] = order[position * groups : (position + 1) * groups].tolist()
    return chosen


def _read_file(path: Path, field: str) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"{field} = {str(path)!r}: there is no such file (looked in {Path.cwd()})")
    pairs = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
        if not line:
            continue
        pairs.append(_parse_json(line, where) if path.suffix == ".jsonl" else (line, {}))
    return pairs


def _parse_json(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: expected an object with a "prompt", got {type(entry).__name__}')
    prompt = entry.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{where}: "prompt" must be a string that is not empty, got {prompt!r}')
    return prompt, entry


def _call(source: str, field: str) -> list[tuple[str, dict[str, Any]]]:
    module, colon, function = source.partition(":")
    if not colon:
        raise ValueError(f"{field} = {source!r} is neither a .txt nor a .jsonl file nor module:function")
    try:
        pairs: list[tuple[str, dict[str, Any]]] = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{field} = {source!r} cannot be imported: {error}") from error
    return pairs
