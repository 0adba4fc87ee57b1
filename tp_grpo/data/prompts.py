"""Prompt sets, and which prompts an epoch visits: files or a generator in, `PromptBatch`es out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tp_grpo.data import own_function
from tp_grpo.data.lines import CLIP_WORDS, MAX_CHARACTERS, name, refuse
from tp_grpo.store.files import expanded
from tp_grpo.types import PromptBatch

SPLITS = {"prompts.train": "train", "prompts.eval": "test"}
# The last two are Flow-GRPO's (arXiv 2505.05470).
FILE_NAMES = ("{}.jsonl", "{}_metadata.jsonl", "{}.txt")
ACCEPTED = "a .txt or .jsonl file, a folder of them, or a module:function"
# How a path begins or a file of data ends; and one word with a slash, or with a file's ending.
LIKE_A_PATH = re.compile(
    r"(/|\./|\.\./|~[\w.-]*/).*|.*\.(txt|jsonl?|[ct]sv|parquet|xlsx?)"
    r"|\S+/\S*|\S+\.[A-Za-z]\w{0,7}",
    re.IGNORECASE | re.DOTALL,
)
# scripts/prepare_prompts.py makes these without a list of prompts.
BUILT_IN = ("geneval", "general_ocr", "pickscore")


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and metadata that scorers need besides them; the index here is a group's id."""

    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """A hash of the prompts and their metadata, in order."""
        content = json.dumps([self.prompts, self.metadata], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def batch(self, ids: Sequence[int], members: Sequence[int]) -> PromptBatch:
        """The samples (ids[b], members[b])."""
        return PromptBatch(
            prompts=[self.prompts[i] for i in ids],
            metadata=[self.metadata[i] for i in ids],
            group_id=torch.as_tensor(ids, dtype=torch.int64),
            member=torch.as_tensor(members, dtype=torch.int64),
        )

    def batches(
        self, groups: Sequence[int], slots: Sequence[Sequence[tuple[int, int]]]
    ) -> list[PromptBatch]:
        """A batch for each list of (position in `groups`, member); groups: indices here."""
        return [
            self.batch([groups[place] for place, _ in batch], [member for _, member in batch])
            for batch in slots
        ]


def load(source: str, *, field: str) -> PromptSet:
    """Read a .txt (a prompt a line), a .jsonl (objects with "prompt"), a folder, or a function.

    source: a path, or "module:function" for a function that returns (prompt, metadata) pairs.
    field: the config field that holds `source`. In a folder `prompts.train` reads train.jsonl,
      train_metadata.jsonl or train.txt, `prompts.eval` the same with "test".

    Duplicates are dropped for evaluation and kept for training. Warns about them, and about
    prompts longer than CLIP reads, which are kept.
    Raises ValueError that names the field and up to `lines.SHOWN` bad lines.
    """
    if not source:
        raise ValueError(f"{field} is empty: name {ACCEPTED}")
    setting, path, unit = f"{field} = {source!r:.300}", expanded(source), "line"
    try:
        if path.is_dir():
            path = _file_in(path, field)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ValueError(f"{setting} cannot be read: {error.strerror}") from error
    if path.suffix in (".txt", ".jsonl"):
        lines = _read_file(path, setting)
    elif ":" in source:
        lines, unit = _call(source, setting), "item"
    else:
        absent = "" if path.exists() else f" (no such file or folder; looked in {Path.cwd()})"
        raise ValueError(f"{setting} is not {ACCEPTED}{absent}{_how_to_make(path)}")
    if not lines:
        raise ValueError(f"{setting} holds no prompts")
    long = [line.number for line in lines if len(line.prompt.split()) > CLIP_WORDS]
    if long:
        warnings.warn(
            f"{setting}: {len(long)} of {len(lines)} prompts have more than {CLIP_WORDS} words "
            f"({name(long, unit)}); CLIP reads 77 tokens, and neither its encoders nor the scorers "
            "built on it see the rest",
            stacklevel=2,
        )
    first: dict[str, _Line] = {}
    repeats = [line.number for line in lines if first.setdefault(line.prompt, line) is not line]
    if repeats:
        keep = field == "prompts.train"  # training files repeat prompts to give them more weight
        outcome = "kept, for more weight" if keep else f"dropped, {len(first)} remain"
        warnings.warn(
            f"{setting}: {len(repeats)} of {len(lines)} prompts repeat an earlier one "
            f"({name(repeats, unit)}); {outcome}",
            stacklevel=2,
        )
        lines = lines if keep else list(first.values())
    return PromptSet([line.prompt for line in lines], [line.metadata for line in lines])


def text_or_source(text: str, *, field: str) -> PromptSet:
    """The one prompt `text`, or what `load` reads; the name of a file is never a prompt.

    Raises ValueError as `load` does.
    """
    if _exists(text) or re.fullmatch(r"[\w.]+:\w+", text):
        return load(text, field=field)
    if LIKE_A_PATH.fullmatch(text):
        try:
            return load(text, field=field)
        except ValueError as error:
            advice = "a text that looks like a path goes into a .txt file"
            raise ValueError(f"{error}; {advice}") from error
    try:
        return PromptSet([_check(text)], [{}])
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _exists(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # as for a name that is too long
        return expanded(text).exists()
    return False


def epoch_groups(n: int, *, seed: int, epoch: int, groups: int) -> list[int]:
    """The prompts of an epoch: passes over all n, shuffled by (seed, pass), none twice in an epoch.

    Raises ValueError when `groups` exceeds n.
    """
    if groups > n:
        raise ValueError(
            f"sample.groups_per_epoch = {groups}, but prompts.train holds {n} prompts; "
            f"give at least {groups} prompts, or at most {n} groups"
        )
    shuffle, position = divmod(epoch, n // groups)
    order = np.random.default_rng([seed, shuffle]).permutation(n)
    return list(map(int, order[position * groups : (position + 1) * groups]))


class _Line(NamedTuple):
    number: int  # from 1, of a line in its file or of an item that a function returned
    prompt: str
    metadata: dict[str, Any]


def _file_in(folder: Path, field: str) -> Path:
    setting = f"{field} = {str(folder)!r}"
    if field not in SPLITS:
        raise ValueError(f"{setting} is a folder; name a .txt or .jsonl file")
    names = [pattern.format(SPLITS[field]) for pattern in FILE_NAMES]
    present = [each for each in names if (folder / each).is_file()]
    if not present:
        hint = _how_to_make(folder)
        raise ValueError(f"{setting}: the folder holds none of {', '.join(names)}{hint}")
    if len(present) > 1:
        example = str(folder / present[0])
        raise ValueError(
            f"{setting}: the folder holds {', '.join(present)}; name the file, as in {example!r}"
        )
    return folder / present[0]


def _how_to_make(path: Path) -> str:
    """The command that makes a file of this name, if one does."""
    folder = path.parent if path.suffix else path
    if folder.name in BUILT_IN:
        default = str(folder.parent) == "dataset"
        out = "" if default else f" --out {shlex.quote(str(folder.parent))}"
        return f"; make it with `python scripts/prepare_prompts.py {folder.name}{out}`"
    if folder.parent.name == "dataset":
        command = f"python scripts/prepare_prompts.py text FILE --name {folder.name}"
        return f"; make it from a list of prompts with `{command}`"
    return ""


def _read_file(path: Path, setting: str) -> list[_Line]:
    if not path.is_file():
        raise ValueError(f"{setting}: no such file (looked in {Path.cwd()}){_how_to_make(path)}")
    try:
        content = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{setting} cannot be read: {error.strerror}") from error
    parse = _parse_json if path.suffix == ".jsonl" else lambda text: (_check(text), {})

    def parse_line(raw: bytes) -> tuple[str, dict[str, Any]] | None:
        try:
            text = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start}"
            raise ValueError(f"not UTF-8 ({where}); save the file as UTF-8") from error
        return parse(text) if text else None

    return _parse_all(content, parse_line, f"{path}:", setting)


def _call(source: str, setting: str) -> list[_Line]:
    def parse_pair(item: Any) -> tuple[str, dict[str, Any]]:
        try:
            prompt, given = item
            text, metadata = _check(prompt), dict(given)
        except (TypeError, ValueError) as error:
            message = f"expected (prompt, metadata), got {item!r:.100}: {error}"
            raise ValueError(message) from error
        own_function.check_metadata(metadata)
        return text, metadata

    return _parse_all(own_function.items(source, setting), parse_pair, f"{source}, item ", setting)


def _parse_all(
    items: Iterable[Any],
    parse: Callable[[Any], tuple[str, dict[str, Any]] | None],
    place: str,
    setting: str,
) -> list[_Line]:
    """Raises ValueError; `place` precedes the number of a bad item in its message."""
    lines, wrong = [], []
    for number, item in enumerate(items, start=1):
        try:
            parsed = parse(item)
        except ValueError as error:
            wrong.append(f"{place}{number}: {error}")
        else:
            lines += [_Line(number, *parsed)] if parsed else []
    refuse(wrong, setting)
    return lines


def _parse_json(text: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: brackets nested too deeply") from error
    if not isinstance(entry, dict):
        raise ValueError(f'expected an object with a "prompt", got {type(entry).__name__}')
    return _check(entry.pop("prompt", None)), entry


def _check(prompt: Any) -> str:
    """The prompt without surrounding spaces. Raises ValueError for what no tokenizer should get."""
    prompt = prompt.replace("\ufeff", "") if isinstance(prompt, str) else prompt
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'"prompt" must be a string that is not empty, got {prompt!r:.100}')
    if len(prompt) > MAX_CHARACTERS:
        raise ValueError(f"{len(prompt)} characters; a prompt may have {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"{prompt!r:.100} holds half a character (a lone UTF-16 surrogate)")
    return prompt.strip()
