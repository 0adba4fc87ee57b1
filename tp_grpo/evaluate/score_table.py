"""The scores of an evaluation that may be stopped: a line an image, written once it is scored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate.held_out import Sample
from tp_grpo.method.stats import score_means
from tp_grpo.rewards.reward_set import Rewards
from tp_grpo.store import files
from tp_grpo.store.compare import changed_scores
from tp_grpo.types import PromptBatch

Scores = Mapping[Sample, Mapping[str, float]]


class ScoreTable:
    """A folder of `scores-RANK.jsonl` and of `settings.json`, all that the scores depend on."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int) -> None:
        """Raises ValueError, field by field, when the folder holds scores by other settings."""
        self.folder, self.path = folder, folder / f"scores-{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "settings.json"
        if known.is_file() and known.stat().st_size:
            if changed := changed_scores(files.read_object(known), settings):
                lines = "\n".join(changed)
                raise ValueError(f"{folder} holds other scores:\n{lines}\nGive another --out.")
        elif rank == 0:
            with files.whole(known) as draft:
                draft.write_text(json.dumps(settings, indent=1))
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")  # so that the next row does not join a line cut short

    def append(self, batch: PromptBatch, rewards: Rewards) -> None:
        """Write the images that have a total; a resumed evaluation tries the others again."""
        columns = rewards.columns(rewards.extras)
        with self.path.open("a") as file:
            for i in (~rewards.total.isnan()).nonzero().flatten().tolist():
                values = {name: column[i].item() for name, column in columns.items()}
                row = {
                    "prompt": batch.group_id[i].item(),
                    "member": batch.member[i].item(),
                    "scores": {k: None if math.isnan(v) else v for k, v in values.items()},
                }
                file.write(json.dumps(row) + "\n")

    def read(self, chosen: Iterable[Sample]) -> dict[Sample, dict[str, float]]:
        """All ranks' scores of these images.

        Files and lines of somebody's own, and lines that were cut short, are passed over.
        """
        scores: dict[Sample, dict[str, float]] = {}
        for path in sorted(self.folder.iterdir()):
            if re.fullmatch(r"scores-\d+\.jsonl", path.name) and path.is_file():
                rows = [row for row in files.read_lines(path) if _is_ours(row)]
                for row in rows:
                    values = {k: math.nan if v is None else v for k, v in row["scores"].items()}
                    scores[row["prompt"], row["member"]] = values
        return {sample: scores[sample] for sample in sorted(scores.keys() & set(chosen))}


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Whether it is a row as `append` writes it."""
    whole = all(type(row.get(name)) is int for name in ("prompt", "member"))
    scores = row.get("scores")
    if not whole or not isinstance(scores, dict):
        return False
    typed = all(v is None or type(v) in (int, float) for v in scores.values())
    return typed and scores.get("total") is not None


def mean_rows(
    scores: Scores, prompts: PromptSet, macros: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """A row for each score: its name, tag, mean over prompts, standard error and images n.

    First those of all prompts (tag None) with the macro means, then those of each "tag" in the
    metadata.
    """
    samples = sorted(scores)
    tags = {sample: str(prompts.metadata[sample[0]].get("tag", "")) for sample in samples}
    rows = _rows(None, samples, scores, prompts, macros)
    for tag in sorted(set(tags.values()) - {""}):
        rows += _rows(tag, [s for s in samples if tags[s] == tag], scores, prompts, {})
    return rows


def as_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| score | prompts | mean ± s.e. | n |", "|---|---|---|---|"]
    for row in rows:
        cells = (row["score"], row["tag"] or "all", f"{row['mean']:.4f} ± {row['se']:.4f}")
        lines.append(f"| {' | '.join(cells)} | {row['n']} |")
    return "\n".join(lines)


def _rows(
    tag: str | None,
    samples: Sequence[Sample],
    scores: Scores,
    prompts: PromptSet,
    macros: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for sample in samples for name in scores[sample])
    columns = {n: torch.tensor([scores[s].get(n, math.nan) for s in samples]) for n in names}
    means = score_means(columns, [prompts.prompts[prompt] for prompt, _ in samples], macros)
    return [
        {"score": name, "tag": tag, "mean": mean, "se": error, "n": n}
        for name, (mean, error, n) in means.items()
    ]
