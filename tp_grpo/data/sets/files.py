"""Writes prompt files, each whole or not at all, and never over a file with other content."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp_grpo.store.files import whole

Prompts = Sequence[str] | Sequence[Mapping[str, Any]]
EXAMPLES = 3


def write(sets: Mapping[Path, Prompts], *, force: bool = False) -> list[str]:
    """Write strings a line each, entries as JSON a line each. Returns a report for the user.

    Leaves a file with the same content alone. Raises ValueError, before anything is written,
    when a file has other content and `force` is false, or when a folder has its name.
    """
    if folders := ", ".join(sorted(str(path) for path in sets if path.is_dir())):
        raise ValueError(f"{folders}: a folder in the place of a file; --out writes elsewhere")
    contents = {path: _content(prompts).encode() for path, prompts in sets.items()}
    changed = {p for p in sets if not p.is_file() or p.read_bytes() != contents[p]}
    in_the_way = ", ".join(sorted(str(path) for path in changed if path.exists()))
    if in_the_way and not force:
        advice = "--force replaces it, --out writes elsewhere"
        raise ValueError(f"{in_the_way}: exists with other content; {advice}")
    for path in changed:
        with whole(path) as draft:
            draft.write_bytes(contents[path])
    report = []
    for path, prompts in sets.items():
        state = "written" if path in changed else "unchanged"
        report += [f"{path}: {state}, {len(prompts)} prompts", *_about(prompts)]
    return report


def _content(prompts: Prompts) -> str:
    lines = [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in prompts]
    return "".join(f"{line}\n" for line in lines)


def _about(prompts: Prompts) -> list[str]:
    """Counts by tag, the length of the longest, and the first few."""
    texts = [p if isinstance(p, str) else p["prompt"] for p in prompts]
    tags = Counter(str(p.get("tag", "no tag")) for p in prompts if not isinstance(p, str))
    lines = [f"  {', '.join(f'{t} {n}' for t, n in sorted(tags.items()))}"] if tags else []
    if texts:
        lines.append(f"  longest: {max(len(text.split()) for text in texts)} words; the first:")
    return lines + [f"    {text}" for text in texts[:EXAMPLES]]
