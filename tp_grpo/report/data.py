"""What a run folder holds: its settings, its metrics by epoch, and what the evaluations say about it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tp_grpo.method.stats import mean_and_error
from tp_grpo.store import files

SCORE_ORDER = (
    "exact",
    "graded",
    "total",
)  # what to show first, where a scorer gives several figures
SMALL = 64  # pixels; images of at most this side stay lossless
BESIDE = (
    "run_name",
    "output_dir",
    "tracking.",
    "checkpoint.",
    "runtime.",
    "rewards.max_failed",
    "train.max_ratio_dev",
)
AXES = ("updates", "evaluations", "seconds")

Lines = list[dict[str, Any]]
Table = dict[str, list[float | None]]


@dataclass(frozen=True)
class Run:
    """A run folder, read; `train` and `eval` hold the metrics as columns of equal length, None where one is missing.

    Both have the columns of AXES: updates done, rows sent through the model while sampling, and training seconds (the
    seconds of evaluations are left out), each counted from the start of the run.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    train: Table
    eval: Table
    seconds: float  # all of them, evaluations included
    history: Lines  # of metrics.jsonl, in its order


def read(folder: Path) -> Run:
    """Raises ValueError when the folder holds no run."""
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} holds no run: there is no metrics.jsonl")
    lines = files.read_lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    spent = sum(line.get("seconds") or 0.0 for line in train + evaluations)
    _add_axes(train, evaluations)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    name = folder.resolve().name
    return Run(folder, name, config, columns(train), columns(evaluations), spent, lines)


def read_all(folders: Iterable[Path]) -> list[Run]:
    """Runs of the same name get their parent folder's before it. Raises ValueError for a folder without a run."""
    runs = [read(folder) for folder in folders]
    names = [run.name for run in runs]
    return [
        run
        if names.count(run.name) == 1
        else Run(**{**vars(run), "name": f"{run.folder.resolve().parent.name}/{run.name}"})
        for run in runs
    ]


def columns(lines: Lines) -> Table:
    """The numbers of the lines by name, None where a line lacks one."""
    names = dict.fromkeys(
        name for line in lines for name, value in line.items() if not isinstance(value, str)
    )
    return {name: [line.get(name) for line in lines] for name in names}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    rows: dict[str, Any] = {}
    for name, value in config.items():
        rows |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, dict) and value
            else {prefix + name: value}
        )
    return rows


def differences(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The settings that are not the same everywhere, but for names, places and what a run does not depend on."""
    rows = [flat(config) for config in configs]
    names = sorted({name for row in rows for name in row})
    asked = [n for n in names if not n.startswith(BESIDE)]
    table = {name: [row.get(name) for row in rows] for name in asked}
    return {
        name: values
        for name, values in table.items()
        if any(value != values[0] for value in values)
    }


def gains(folder: Path) -> list[dict[str, Any]]:
    """First against last evaluation, same prompts and noise: a row a score, the most telling one first.

    Mean change and its paired standard error over prompts; `epoch` is the last evaluation's. Empty for fewer than two.
    Raises ValueError when the two are not of the same prompts.
    """
    paths = by_epoch(folder / "evaluations")
    if len(paths) < 2:
        return []
    (before, prompts), (after, prompts_after) = tensors(paths[0]), tensors(paths[-1])
    if prompts != prompts_after:
        raise ValueError(
            f"{paths[0]} and {paths[-1]} are of different prompts: they cannot be compared"
        )
    rows: list[dict[str, Any]] = []
    for name in sorted((name for name in before if name != "images"), key=rank):
        change = after[name] - before[name]
        if change.isnan().all():
            continue
        gap = torch.where(change.isnan(), torch.nan, 0.0)  # an image counts where both have a score
        mean, error = mean_and_error(change, prompts)
        rows.append(
            {
                "name": name,
                "epoch": epoch_of(paths[-1]),
                "before": mean_and_error(before[name] + gap, prompts)[0],
                "after": mean_and_error(after[name] + gap, prompts)[0],
                "change": mean,
                "se": error,
                "n": int((~change.isnan()).sum()),
            }
        )
    return rows


def before_and_after(folder: Path, score: str, most: int) -> list[dict[str, Any]]:
    """The first `most` of the pictures kept of the first and the last evaluation, with that score."""
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


def by_epoch(folder: Path) -> list[Path]:
    """The folder's epoch-N.safetensors, oldest first."""
    return sorted(folder.glob("epoch-*.safetensors"), key=epoch_of)


def epoch_of(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a file of the run, and the prompts in its metadata."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, json.loads(
            file.metadata()["prompts"]
        )


def rank(name: str) -> tuple[int, str]:
    """Sorts the names of scores, the most telling first."""
    last = name.rpartition("/")[2]
    return (SCORE_ORDER.index(last) if last in SCORE_ORDER else len(SCORE_ORDER), name)


def picture(image: Tensor) -> str:
    """(H, W, 3) uint8 -> a data URI: lossless where the image is small, WebP otherwise."""
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
