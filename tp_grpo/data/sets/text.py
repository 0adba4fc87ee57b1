"""An evaluation set from any list of prompts: a .txt, .csv or .tsv file.

A .txt has a prompt a line, which a TAB and a tag may follow. In a table the header calls the
prompts prompt, prompts, caption or text; the other columns are kept as metadata. DrawBench's
table (Prompts, Category) is read as it is.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tp_grpo.data import lines
from tp_grpo.data.lines import CLIP_WORDS, MAX_CHARACTERS

PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
TAG_COLUMNS = {"category": "tag", "tags": "tag"}  # GenEval's word for a prompt's family


@dataclass(frozen=True)
class Cleaned:
    """Prompts without duplicates, and the numbers of lines to report to the user."""

    entries: list[dict[str, str]]  # {...metadata, "prompt"}
    repeated: list[int]  # dropped
    empty: list[int]  # rows and tags without a prompt, dropped
    long: list[int]  # more than CLIP_WORDS words, kept


@dataclass(frozen=True)
class _Row:
    line: int
    prompt: str
    metadata: dict[str, str] = field(default_factory=dict)
    wrong: str = ""
    blank: bool = False


def read(path: Path) -> Cleaned:
    """Read and clean. Raises ValueError that names up to `lines.SHOWN` bad lines."""
    if path.suffix not in (".txt", ".csv", ".tsv"):
        raise ValueError(
            f"{path}: expected .txt, .csv or .tsv (a .jsonl needs no preparation: name it in "
            "prompts.eval)"
        )
    content = lines.read(path)
    rows = list(_lines(content) if path.suffix == ".txt" else _table(content, path))
    lines.refuse([f"{path}:{row.line}: {row.wrong}" for row in rows if row.wrong], str(path))
    entries: dict[str, dict[str, str]] = {}
    repeated = []
    for row in rows:
        if row.prompt in entries:
            repeated.append(row.line)
        elif row.prompt:
            entries[row.prompt] = {**row.metadata, "prompt": row.prompt}
    if not entries:
        raise ValueError(f"{path} holds no prompts")
    empty = [row.line for row in rows if not row.prompt and not row.blank]
    long = [row.line for row in rows if len(row.prompt.split()) > CLIP_WORDS]
    return Cleaned(list(entries.values()), repeated, empty, long)


def _lines(content: str) -> Iterator[_Row]:
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(content.split("\n"), start=1):
        prompt, *tags = line.rstrip().lstrip(" ").split("\t")
        if len(tags) > 1:
            wrong = f"{len(tags)} TABs; expected a prompt, or a prompt, one TAB and its tag"
            yield _Row(number, "", wrong=wrong)
        else:
            tag = "".join(tags).strip()
            yield _row(number, prompt, {"tag": tag} if tag else {}, blank=not line.strip())


def _table(content: str, path: Path) -> Iterator[_Row]:
    delimiter = "," if path.suffix == ".csv" else "\t"
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        column = next((name for name in PROMPT_COLUMNS if name in header), None)
        if column is None:
            raise ValueError(
                f"{path}:1: no column is called {', '.join(PROMPT_COLUMNS)}; the header has "
                f"{', '.join(header) or 'nothing'}"
            )
        for cells in reader:
            if len(cells) == len(header):
                named = dict(zip(header, map(str.strip, cells), strict=True))
                prompt = named.pop(column)
                metadata = {TAG_COLUMNS.get(n, n): v for n, v in named.items() if n and v}
                yield _row(reader.line_num, prompt, metadata)
            elif cells:
                wrong = f"{len(cells)} cells, but the header names {len(header)} columns"
                yield _Row(reader.line_num, "", wrong=wrong)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a table: {error}") from error


def _row(line: int, prompt: str, metadata: dict[str, str], *, blank: bool = False) -> _Row:
    """The prompt on one line, spaces collapsed, in Unicode's composed form."""
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    long = len(prompt) > MAX_CHARACTERS
    wrong = f"{len(prompt)} characters; a prompt may have {MAX_CHARACTERS}" if long else ""
    return _Row(line, prompt, metadata, wrong, blank)
