"""Writing prompt files: all or nothing to look at, and never over a file that says something else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Prompts = Sequence[str] | Sequence[Mapping[str, Any]]
EXAMPLES = 3


def write(sets: Mapping[Path, Prompts], *, force: bool = False) -> list[str]:
    """Write each set to its path: strings a line each, entries as JSON a line each. Returns what to tell the user.

    Each file appears whole or not at all; one that is there already with the same content is left alone.
    Raises ValueError, before anything is written, where a file says something else and `force` is not given.
    """
    contents = {path: _content(prompts).encode("utf-8") for path, prompts in sets.items()}
    changed = {
        path
        for path, content in contents.items()
        if not path.is_file() or path.read_bytes() != content
    }
    in_the_way = sorted(str(path) for path in changed if path.exists())
    if in_the_way and not force:
        raise ValueError(
            f"{', '.join(in_the_way)}: there already, with other content; --force replaces it, --out writes elsewhere"
        )
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.draft")
        draft.write_bytes(contents[path])
        os.replace(draft, path)
    return [
        line
        for path, prompts in sets.items()
        for line in [
            f"{path}: {'written' if path in changed else 'unchanged'}, {len(prompts)} prompts",
            *_about(prompts),
        ]
    ]


def _content(prompts: Prompts) -> str:
    lines = [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in prompts]
    return "".join(f"{line}\n" for line in lines)


def _about(prompts: Prompts) -> list[str]:
    """Counts by tag, the longest, and the first few."""
    texts = [p if isinstance(p, str) else p["prompt"] for p in prompts]
    tags = Counter(str(p.get("tag", "no tag")) for p in prompts if not isinstance(p, str))
    lines = (
        ["  " + ", ".join(f"{tag} {count}" for tag, count in sorted(tags.items()))] if tags else []
    )
    if texts:
        lines.append(f"  longest: {max(len(text.split()) for text in texts)} words; the first:")
    return lines + [f"    {text}" for text in texts[:EXAMPLES]]
