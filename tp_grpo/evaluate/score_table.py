"""The scores of an evaluation that may be stopped, a line an image, written as it is scored; and their table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tp_grpo.method.stats import macro_means, mean_and_error
from tp_grpo.store import files

Sample = tuple[int, int]  # (prompt index, member)


class ScoreTable:
    """`scores-RANK.jsonl` in a folder, beside `settings.json`, which says what they are scores of."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int) -> None:
        """Raises ValueError, field by field, when the folder holds scores of something else."""
        self.folder, self.path = folder, folder / f"scores-{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "settings.json"
        now = json.loads(json.dumps(settings))
        if known.is_file() and known.stat().st_size:
            then = json.loads(known.read_text())
            changed = [
                f"  {name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in now | then
            ]
            changed = [
                line
                for line, name in zip(changed, now | then, strict=True)
                if then.get(name) != now.get(name)
            ]
            if changed:
                raise ValueError(
                    f"{folder} holds scores of something else:\n"
                    + "\n".join(changed)
                    + "\nGive another --out."
                )
        elif rank == 0:
            with files.whole(known) as draft:
                draft.write_text(json.dumps(now, indent=1))

        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self.path.open("a").write(
                "\n"
            )  # what a kill cut short must not swallow the line after it

    def append(self, samples: Sequence[Sample], scores: Mapping[str, Tensor]) -> None:
        """scores: name -> (n,), NaN for none. On disk when this returns."""
        with self.path.open("a") as file:
            for i, (prompt, member) in enumerate(samples):
                values = {name: column[i].item() for name, column in scores.items()}
                had = {name: None if math.isnan(value) else value for name, value in values.items()}
                file.write(json.dumps({"prompt": prompt, "member": member, "scores": had}) + "\n")

    def read(self) -> dict[Sample, dict[str, float]]:
        """What all ranks have written; a line cut short by a kill is as good as none."""
        found: dict[Sample, dict[str, float]] = {}
        for path in sorted(self.folder.glob("scores-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                scores = {
                    name: math.nan if value is None else value
                    for name, value in row["scores"].items()
                }
                found[row["prompt"], row["member"]] = scores
        return found


def summarise(
    scores: Mapping[Sample, Mapping[str, float]],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    macros: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """A row a score: mean over prompts, its standard error, images n; so of the macro means, see `RewardSet`; then
    of the scores by "tag" in the metadata.
    """
    samples = sorted(scores)
    tags = sorted(
        {str(metadata[prompt]["tag"]) for prompt, _ in samples if "tag" in metadata[prompt]}
    )
    rows = [_row(name, None, samples, scores, prompts) for name in _names(scores.values())]
    rows += _macro_rows(macros, samples, scores, prompts)
    for tag in tags:
        own = [sample for sample in samples if str(metadata[sample[0]].get("tag")) == tag]
        rows += [
            _row(name, tag, own, scores, prompts)
            for name in _names(scores[sample] for sample in own)
        ]
    return [row for row in rows if row["n"]]


def as_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| score | prompts | mean ± s.e. | n |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['score']} | {row['tag'] or 'all'} | {row['mean']:.4f} ± {row['se']:.4f} | {row['n']} |"
        )
    return "\n".join(lines)


def _names(rows: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _row(
    name: str,
    tag: str | None,
    samples: Sequence[Sample],
    scores: Mapping[Sample, Mapping[str, float]],
    prompts: Sequence[str],
) -> dict[str, Any]:
    values = _column(name, samples, scores)
    mean, error = mean_and_error(values, [prompts[prompt] for prompt, _ in samples])
    return {"score": name, "tag": tag, "mean": mean, "se": error, "n": int((~values.isnan()).sum())}


def _macro_rows(
    macros: Mapping[str, Sequence[str]],
    samples: Sequence[Sample],
    scores: Mapping[Sample, Mapping[str, float]],
    prompts: Sequence[str],
) -> list[dict[str, Any]]:
    columns = {part: _column(part, samples, scores) for parts in macros.values() for part in parts}
    found = macro_means(columns, [prompts[prompt] for prompt, _ in samples], macros)
    counts = {
        name: sum(int((~columns[part].isnan()).sum()) for part in macros[name]) for name in found
    }
    return [
        {"score": name, "tag": None, "mean": mean, "se": error, "n": counts[name]}
        for name, (mean, error) in found.items()
    ]


def _column(
    name: str, samples: Sequence[Sample], scores: Mapping[Sample, Mapping[str, float]]
) -> Tensor:
    return torch.tensor([scores[sample].get(name, math.nan) for sample in samples])
