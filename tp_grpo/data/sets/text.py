"""An evaluation set from anybody's list of prompts: .txt (a prompt a line, after a TAB its tag), .csv or .tsv.

A table's header names its columns: the prompts' is called prompt, prompts, caption or text, the others are kept as
metadata. DrawBench's table (Prompts, Category) is read as it is.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
TAG_COLUMNS = {"category": "tag", "tags": "tag"}  # GenEval's word for a prompt's family
MAX_CHARACTERS = 10_000
LONG_WORDS = 77  # CLIP reads 77 tokens, and a word is one at least
SHOWN = 10  # bad lines named in a message


@dataclass(frozen=True)
class Cleaned:
    """entries: {...metadata, "prompt"}, each prompt once. By line number what is to tell: repeated, repeats that were
    left out; empty, rows of a table or tags without a prompt, left out as well; long, prompts of more than LONG_WORDS.
    """

    entries: list[dict[str, str]]
    repeated: list[int]
    empty: list[int]
    long: list[int]

    @property
    def tagged(self) -> bool:
        """Whether any prompt has metadata."""
        return any(len(entry) > 1 for entry in self.entries)


@dataclass(frozen=True)
class _Row:
    line: int
    prompt: str
    metadata: dict[str, str] = field(default_factory=dict)
    wrong: str = ""
    blank: bool = False


def read(path: Path) -> Cleaned:
    """Read and clean. Raises ValueError naming the bad lines, ten of them at most."""
    if path.suffix not in (".txt", ".csv", ".tsv"):
        raise ValueError(
            f"{path}: expected .txt, .csv or .tsv (a .jsonl of prompts needs no preparing: name it in prompts.eval)"
        )
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    rows = [
        _clean(row) for row in (_lines(content) if path.suffix == ".txt" else _table(content, path))
    ]
    wrong = [f"{path}:{row.line}: {row.wrong}" for row in rows if row.wrong]
    if wrong:
        rest = [f"and {len(wrong) - SHOWN} more bad lines"] if len(wrong) > SHOWN else []
        raise ValueError("\n".join(wrong[:SHOWN] + rest))
    return _once(rows, path)


def _lines(content: str) -> Iterator[_Row]:
    for number, line in enumerate(
        content.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1
    ):
        prompt, *tags = line.rstrip().lstrip(" ").split("\t")
        if len(tags) > 1:
            wrong = f"{len(tags)} TABs; expected a prompt, or a prompt, one TAB and its tag"
            yield _Row(number, "", wrong=wrong)
        else:
            tag = tags[0].strip() if tags else ""
            yield _Row(number, prompt, {"tag": tag} if tag else {}, blank=not line.strip())


def _table(content: str, path: Path) -> Iterator[_Row]:
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter="," if path.suffix == ".csv" else "\t"
    )
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        column = next((name for name in PROMPT_COLUMNS if name in header), None)
        if column is None:
            said = ", ".join(header) or "nothing"
            raise ValueError(
                f"{path}:1: no column is called {', '.join(PROMPT_COLUMNS)}; the header says {said}"
            )
        for cells in reader:
            if len(cells) == len(header):
                named = dict(zip(header, map(str.strip, cells), strict=True))
                prompt = named.pop(column)
                yield _Row(
                    reader.line_num,
                    prompt,
                    {TAG_COLUMNS.get(n, n): v for n, v in named.items() if n and v},
                )
            elif cells:
                wrong = f"{len(cells)} cells, but the header names {len(header)} columns"
                yield _Row(reader.line_num, "", wrong=wrong)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a table: {error}") from error


def _clean(row: _Row) -> _Row:
    """On one line, without spaces at its ends or two in a row, in Unicode's composed form."""
    prompt = " ".join(unicodedata.normalize("NFC", row.prompt).split())
    if len(prompt) > MAX_CHARACTERS:
        return replace(row, wrong=f"{len(prompt)} characters; a prompt may have {MAX_CHARACTERS}")
    return replace(row, prompt=prompt)


def _once(rows: list[_Row], path: Path) -> Cleaned:
    entries: dict[str, dict[str, str]] = {}
    repeated: list[int] = []
    for row in rows:
        if not row.prompt:
            continue
        if row.prompt in entries:
            repeated.append(row.line)
        else:
            entries[row.prompt] = {**row.metadata, "prompt": row.prompt}
    if not entries:
        raise ValueError(f"{path} holds no prompts")
    empty = [row.line for row in rows if not row.prompt and not row.blank]
    long = [row.line for row in rows if len(row.prompt.split()) > LONG_WORDS]
    return Cleaned(list(entries.values()), repeated, empty, long)
