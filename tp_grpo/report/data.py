"""Reads a run's folder: its settings, its metrics by epoch, and what the evaluations show."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from tp_grpo.method.stats import mean_and_error
from tp_grpo.observe.tracking import by_epoch, epoch_of, reading, records
from tp_grpo.store.compare import flatten

SCORE_ORDER = ("exact", "graded", "total")  # shown first, where a scorer has several figures
SMALL = 64  # pixels; images of at most this side stay lossless
# Names, places and what does not affect the numbers.
PLACES = ("run_name", "output_dir", "tracking.", "checkpoint.", "runtime.")
IRRELEVANT = (*PLACES, "rewards.max_failed", "train.max_ratio_dev")
NEEDED = {  # settings that a report shows or counts with
    "credit": ("name",),
    "sample": (
        *("kind", "noise_level", "steps", "window_start", "window_size"),
        *("groups_per_epoch", "group_size"),
    ),
}
AXES = {"updates": "updates", "evaluations": "sampling evaluations", "seconds": "training seconds"}

Lines = list[dict[str, Any]]
Table = dict[str, list[float | None]]


@dataclass(frozen=True)
class Run:
    """`train` and `eval`: metrics as columns of equal length, None where one is missing.

    Both have the columns of AXES, counted from the start of the run: updates done, rows sent
    through the model while sampling, and training seconds (without those of evaluations).
    """

    folder: Path
    name: str
    config: dict[str, Any]
    train: Table
    eval: Table
    seconds: float  # with evaluations
    history: Lines  # of metrics.jsonl, in its order


def read(folder: Path) -> Run:
    """Raises ValueError when the folder holds no run, or one with a damaged config."""
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} holds no run: it has no metrics.jsonl")
    lines = records(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    spent = sum(line.get("seconds") or 0.0 for line in train + evaluations)
    _add_axes(train, evaluations)
    config = _config(folder / "config.yaml")
    name = folder.resolve().name
    return Run(folder, name, config, columns(train), columns(evaluations), spent, lines)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no config")
    sections = {name: config.get(name) for name in NEEDED}
    lacking = [
        f"{name}.{field}"
        for name, held in sections.items()
        for field in NEEDED[name]
        if not isinstance(held, dict) or field not in held
    ]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}")
    return config


def read_all(folders: Iterable[Path]) -> list[Run]:
    """Runs of the same name are called PARENT/NAME. ValueError for a folder without a run."""
    runs = [read(folder) for folder in folders]
    names = [run.name for run in runs]
    paths = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    shown = [n if names.count(n) == 1 else path for n, path in zip(names, paths, strict=True)]
    return [replace(run, name=name) for run, name in zip(runs, shown, strict=True)]


def columns(lines: Lines) -> Table:
    """The numbers of the lines by name, None where a line lacks one."""
    names = dict.fromkeys(n for line in lines for n, v in line.items() if not isinstance(v, str))
    return {name: [line.get(name) for line in lines] for name in names}


def differences(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """{field: a value for each config} of the settings that differ and are not IRRELEVANT."""
    rows = [flatten(config) for config in configs]
    names = sorted({n for row in rows for n in row if not n.startswith(IRRELEVANT)})
    table = {name: [row.get(name) for row in rows] for name in names}
    return {name: row for name, row in table.items() if any(value != row[0] for value in row)}


def gains(folder: Path) -> list[dict[str, Any]]:
    """First against last evaluation, same prompts and noise: a row a score, the most telling first.

    Mean change with its paired standard error over prompts; `epoch` is the last evaluation's.
    Empty for fewer than two. Raises ValueError when their prompts differ.
    """
    paths = by_epoch(folder / "evaluations")
    if len(paths) < 2:
        return []
    (before, prompts), (after, prompts_after) = tensors(paths[0]), tensors(paths[-1])
    if prompts != prompts_after:
        raise ValueError(f"{paths[0]} and {paths[-1]} have different prompts: not comparable")
    rows = []
    for name in sorted((before.keys() & after.keys()) - {"images"}, key=rank):
        change = after[name] - before[name]
        if change.isnan().all():
            continue
        gap = torch.where(change.isnan(), torch.nan, 0.0)  # an image counts if it has both scores
        mean, error = mean_and_error(change, prompts)
        row = {"name": name, "epoch": epoch_of(paths[-1]), "change": mean, "se": error}
        for when, scores in (("before", before[name]), ("after", after[name])):
            row[when] = mean_and_error(scores + gap, prompts)[0]
        rows.append(row | {"n": int((~change.isnan()).sum())})
    return rows


def before_and_after(folder: Path, score: str, most: int) -> list[dict[str, Any]]:
    """At most `most` pairs of pictures of the first and the last evaluation, with that score."""
    paths = by_epoch(folder / "evaluations")
    (before, prompts), (after, _) = tensors(paths[0]), tensors(paths[-1])
    return [
        {
            "prompt": prompts[i],
            "before": picture(before["images"][i]),
            "after": picture(after["images"][i]),
            "before_score": before[score][i].item(),
            "after_score": after[score][i].item(),
        }
        for i in range(min(most, len(before["images"]), len(after["images"])))
    ]


def tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of ladders or an evaluation, and the prompts in the file's metadata.

    Raises ValueError for a damaged file.
    """
    with reading(path) as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return kept, json.loads(file.metadata()["prompts"])


def rank(name: str) -> tuple[int, str]:
    """Sorts the names of scores, the most telling first."""
    last = name.rpartition("/")[2]
    return (SCORE_ORDER.index(last) if last in SCORE_ORDER else len(SCORE_ORDER), name)


def picture(image: Tensor) -> str:
    """(H, W, 3) uint8 -> a data URI: lossless for a small image, WebP otherwise."""
    small = max(image.shape[:2]) <= SMALL
    kind, options = ("PNG", {"optimize": True}) if small else ("WEBP", {"quality": 80})
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _add_axes(train: Lines, evaluations: Lines) -> None:
    spent = 0.0
    reached: dict[int, dict[str, Any]] = {0: dict.fromkeys(AXES, 0.0)}
    for line in train:
        line["seconds_all"] = line.get("seconds")
        spent += line.get("seconds") or 0.0
        line |= {"evaluations": line.get("nfe"), "seconds": spent}
        reached[line["epoch"]] = {name: line.get(name) for name in AXES}
    for line in evaluations:
        line |= reached.get(line["epoch"], dict.fromkeys(AXES))
