"""Prompt sets, and which prompts an epoch visits. Stands alone: files or a generator in, `PromptBatch`es out."""

from __future__ import annotations

import hashlib
import importlib
import json
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tp_grpo.types import PromptBatch

SPLITS = {"prompts.train": "train", "prompts.eval": "test"}
FILE_NAMES = (
    "{}.jsonl",
    "{}_metadata.jsonl",
    "{}.txt",
)  # ours; Flow-GRPO's (arXiv 2505.05470) last two
MADE = (
    "geneval",
    "general_ocr",
    "pickscore",
)  # the sets that scripts/prepare_prompts.py makes by itself
CLIP_WORDS = 77  # a word is a token at least, and CLIP reads 77
MAX_CHARACTERS = 10_000
MAX_SHOWN = 10  # lines named in a message


@dataclass(frozen=True)
class PromptSet:
    """Prompts with their metadata (what a scorer needs beside the words); a group's id is the index here."""

    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """A hash of the prompts and their metadata, in their order."""
        content = json.dumps([self.prompts, self.metadata], sort_keys=True, default=repr)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def batch(self, ids: Sequence[int], members: Sequence[int]) -> PromptBatch:
        """The samples (ids[b], members[b])."""
        return PromptBatch(
            prompts=[self.prompts[i] for i in ids],
            metadata=[self.metadata[i] for i in ids],
            group_id=torch.as_tensor(ids, dtype=torch.int64),
            member=torch.as_tensor(members, dtype=torch.int64),
        )


def load(source: str, *, field: str) -> PromptSet:
    """Read a .txt (a prompt a line), a .jsonl (objects with "prompt"), a folder of them, or call a "module:function".

    field: the config field that named the source; of a folder, `prompts.train` takes train.jsonl, train_metadata.jsonl
    or train.txt, `prompts.eval` the same with "test". A function gives (prompt, metadata) pairs. A prompt that is there
    again is left out, but kept for training; one longer than CLIP reads is kept; both are warned of.

    Raises ValueError, naming the config field and, for bad lines, file:line (`MAX_SHOWN` of them).
    """
    if not source:
        raise ValueError(
            f"{field} is empty: name a .txt or .jsonl file, a folder of them, or a module:function"
        )
    told = f"{field} = {source!r}"
    path = Path(source)
    if path.is_dir():
        path = _file_in(path, field)
    if path.suffix in (".txt", ".jsonl"):
        lines, unit = _read_file(path, told), "line"
    elif ":" in source:
        lines, unit = _call(source, told), "item"
    else:
        raise ValueError(
            f"{told} is neither a .txt nor a .jsonl file nor a folder of them nor a module:function{_how_to_make(path)}"
        )
    if not lines:
        raise ValueError(f"{told} holds no prompts")
    _warn_of_long(lines, told, unit)
    kept = _settle_repeats(lines, told, unit, keep=field == "prompts.train")
    return PromptSet([line.prompt for line in kept], [line.metadata for line in kept])


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


class _Line(NamedTuple):
    """number: of the line in its file, or of the item a function gave, from 1."""

    number: int
    prompt: str
    metadata: dict[str, Any]


def _file_in(folder: Path, field: str) -> Path:
    told = f"{field} = {str(folder)!r}"
    if field not in SPLITS:
        raise ValueError(f"{told} is a folder; name a .txt or .jsonl file")
    names = [name.format(SPLITS[field]) for name in FILE_NAMES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"{told}: the folder holds none of {', '.join(names)}{_how_to_make(folder)}"
        )
    if len(found) > 1:
        both = ", ".join(path.name for path in found)
        raise ValueError(
            f"{told}: the folder holds {both}; name the one that is meant, as in {str(found[0])!r}"
        )
    return found[0]


def _how_to_make(path: Path) -> str:
    """The command that makes a file of this name, where there is one."""
    folder = path.parent if path.suffix else path
    if folder.name in MADE:
        out = "" if str(folder.parent) == "dataset" else f" --out {shlex.quote(str(folder.parent))}"
        return f"; make it with `python scripts/prepare_prompts.py {folder.name}{out}`"
    if folder.parent.name == "dataset":
        return f"; make it from a list of prompts with `python scripts/prepare_prompts.py text FILE --name {folder.name}`"
    return ""


def _read_file(path: Path, told: str) -> list[_Line]:
    if not path.is_file():
        raise ValueError(
            f"{told}: there is no such file (looked in {Path.cwd()}){_how_to_make(path)}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{told} cannot be read: {error.strerror}") from error
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    lines, wrong = [], []
    for number, raw in enumerate(content.splitlines(), start=1):
        try:
            parsed = parse(raw.decode("utf-8-sig").strip())
        except UnicodeDecodeError as error:
            wrong.append(
                f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            )
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
        else:
            lines += [_Line(number, *parsed)] if parsed else []
    _refuse(wrong, told)
    return lines


def _parse_text(line: str) -> tuple[str, dict[str, Any]] | None:
    return (_check(line), {}) if line else None


def _parse_json(line: str) -> tuple[str, dict[str, Any]] | None:
    if not line:
        return None
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(
            "not JSON that can be read: brackets within brackets without end"
        ) from error
    if not isinstance(entry, dict):
        raise ValueError(f'expected an object with a "prompt", got {type(entry).__name__}')
    return _check(entry.pop("prompt", None)), entry


def _check(prompt: Any) -> str:
    """The prompt without spaces around it. Raises ValueError for one that no tokenizer should be given."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'"prompt" must be a string that is not empty, got {prompt!r:.100}')
    if len(prompt) > MAX_CHARACTERS:
        raise ValueError(f"{len(prompt)} characters; a prompt may have {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"{prompt!r:.100} holds half a character (a lone UTF-16 surrogate)")
    return prompt.strip()


def _call(source: str, told: str) -> list[_Line]:
    module, _, name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{told} cannot be imported: {error}") from error
    lines, wrong = [], []
    for number, item in enumerate(function(), start=1):
        try:
            prompt, metadata = item
            lines.append(_Line(number, _check(prompt), dict(metadata)))
        except (TypeError, ValueError) as error:
            wrong.append(
                f"{source}, item {number}: expected (prompt, metadata), got {item!r:.100}: {error}"
            )
    _refuse(wrong, told)
    return lines


def _refuse(wrong: list[str], told: str) -> None:
    if wrong:
        rest = [f"and {len(wrong) - MAX_SHOWN} more"] if len(wrong) > MAX_SHOWN else []
        count = "a bad line" if len(wrong) == 1 else f"{len(wrong)} bad lines"
        raise ValueError("\n".join([f"{told} has {count}:", *wrong[:MAX_SHOWN], *rest]))


def _warn_of_long(lines: list[_Line], told: str, unit: str) -> None:
    long = [line.number for line in lines if len(line.prompt.split()) > CLIP_WORDS]
    if long:
        warnings.warn(
            f"{told}: {len(long)} of {len(lines)} prompts have more than {CLIP_WORDS} words ({_some(long, unit)}); "
            "CLIP reads 77 tokens, the rest of a prompt reaches neither its encoders nor the scorers built on it",
            stacklevel=3,
        )


def _repeats(lines: list[_Line]) -> list[int]:
    """Which lines hold a prompt that an earlier one holds too; positions in `lines`."""
    first: dict[str, int] = {}
    for i, line in enumerate(lines):
        first.setdefault(line.prompt, i)
    return [i for i, line in enumerate(lines) if first[line.prompt] != i]


def _settle_repeats(lines: list[_Line], told: str, unit: str, *, keep: bool) -> list[_Line]:
    """Training files repeat prompts to weigh them; in an evaluation a prompt that is there twice would count twice."""
    again = _repeats(lines)
    if not again:
        return lines
    where = _some([lines[i].number for i in again], unit)
    left = (
        "they are kept, and weigh the more"
        if keep
        else f"left out, {len(lines) - len(again)} remain"
    )
    warnings.warn(
        f"{told}: {len(again)} of {len(lines)} prompts are there before ({where}); {left}",
        stacklevel=3,
    )
    dropped = set() if keep else set(again)
    return [line for i, line in enumerate(lines) if i not in dropped]


def _some(numbers: list[int], unit: str) -> str:
    shown = ", ".join(map(str, numbers[:MAX_SHOWN]))
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > MAX_SHOWN)}"
