"""A run folder -> one self-contained HTML page: curves, before and after, trajectories with their turning points.

python -m tp_grpo.report runs/NAME
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tp_grpo import files
from tp_grpo.rewards import mean_and_error

MAX_GROUP_ROWS = 8
SCORE_ORDER = ("exact", "graded", "total")  # what to show first, where a scorer gives several figures


def write(folder: Path, page: Path) -> None:
    """Read the run's metrics, evaluations and newest ladders, and write the page.

    Raises ValueError when the folder holds no run.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} holds no run: there is no metrics.jsonl")
    lines = files.read_lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    config = json.loads((folder / "config.json").read_text())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    headline, groups = gains(folder), trajectories(folder)
    html = environment.get_template("report.html.jinja").render(
        name=folder.name,
        config=config,
        settings=json.dumps(config, indent=1, sort_keys=True),
        train=train,
        minutes=sum(line["seconds"] for line in lines) / 60,
        headline=headline,
        samples=_before_and_after(folder, headline[0]["name"]) if headline else [],
        last_epoch=evaluations[-1]["epoch"] if evaluations else 0,
        curves=_curves(train, evaluations),
        groups=groups,
    )
    with files.whole(page) as draft:
        draft.write_text(html)


def gains(folder: Path) -> list[dict[str, Any]]:
    """First against last evaluation, same prompts and noise: a row a score, the most telling one first.

    Mean change and its paired standard error over prompts; `epoch` is the last evaluation's. Empty for fewer than two.
    Raises ValueError when the two are not of the same prompts.
    """
    paths = _by_epoch(folder / "evaluations")
    if len(paths) < 2:
        return []
    (before, prompts), (after, prompts_after) = _read(paths[0]), _read(paths[-1])
    if prompts != prompts_after:
        raise ValueError(f"{paths[0]} and {paths[-1]} are of different prompts: they cannot be compared")
    rows: list[dict[str, Any]] = []
    for name in sorted((name for name in before if name != "images"), key=_rank):
        change = after[name] - before[name]
        if change.isnan().all():
            continue
        gap = torch.where(change.isnan(), torch.nan, 0.0)  # an image counts where both have a score
        mean, error = mean_and_error(change, prompts)
        rows.append(
            {
                "name": name,
                "epoch": _epoch(paths[-1]),
                "before": mean_and_error(before[name] + gap, prompts)[0],
                "after": mean_and_error(after[name] + gap, prompts)[0],
                "change": mean,
                "se": error,
                "n": int((~change.isnan()).sum()),
            }
        )
    return rows


def _before_and_after(folder: Path, score: str) -> list[dict[str, Any]]:
    """The kept pictures of the first and the last evaluation, with that score."""
    paths = _by_epoch(folder / "evaluations")
    (before, prompts), (after, _) = _read(paths[0]), _read(paths[-1])
    return [
        {
            "prompt": prompts[i],
            "before": _png(before["images"][i]),
            "after": _png(after["images"][i]),
            "before_score": before[score][i].item(),
            "after_score": after[score][i].item(),
        }
        for i in range(min(len(before["images"]), len(after["images"])))
    ]


def trajectories(folder: Path) -> list[dict[str, Any]]:
    """The newest kept groups: each row a trajectory, its completions, ladder, step rewards and turning points."""
    paths = _by_epoch(folder / "ladders")
    if not paths:
        return []
    kept, prompts = _read(paths[-1])
    groups: dict[int, dict[str, Any]] = {}
    for i in range(len(kept["images"])):
        group = groups.setdefault(int(kept["group_id"][i]), {"prompt": prompts[i], "rows": []})
        if len(group["rows"]) < MAX_GROUP_ROWS:
            group["rows"].append(_row(kept, i))
    return list(groups.values())


def _row(kept: dict[str, Tensor], i: int) -> dict[str, Any]:
    ladder = kept["ladder"][i].tolist()
    cells = [{"image": _png(image), "reward": reward} for image, reward in zip(kept["images"][i], ladder, strict=True)]
    for k, cell in enumerate(cells[1:]):
        turning = bool(kept["turning"][i, k])
        cell |= {
            "increment": kept["increment"][i, k].item(),
            "credit": kept["reward"][i, k].item(),
            "advantage": kept["advantage"][i, k].item(),
            "turning": ("good" if kept["reward"][i, k] > 0 else "bad") if turning else "",
        }
    return {"cells": cells}


def _curves(train: list[dict[str, float]], evaluations: list[dict[str, float]]) -> list[dict[str, str]]:
    """Inline SVGs with a caption and a text alternative."""
    figures = []
    if train:
        series = {"reward": ([t["epoch"] for t in train], [t["reward"] for t in train], None)}
        figures.append(_curve("Reward on training prompts (stochastic samples)", series))
    scores = sorted({name for e in evaluations for name in e if name + "_se" in e}, key=_rank)
    if scores:
        held = {
            name.rpartition("/")[2]: (
                [e["epoch"] for e in evaluations],
                [e.get(name, float("nan")) for e in evaluations],
                [e.get(name + "_se", 0.0) for e in evaluations],
            )
            for name in scores[:3]
        }
        figures.append(_curve("Held-out prompts (ODE, same prompts and noise each time; bars: standard error)", held))
    return figures


def _curve(title: str, series: Mapping[str, tuple[list[float], list[float], list[float] | None]]) -> dict[str, str]:
    matplotlib.rcParams["svg.hashsalt"] = "tp_grpo"
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    words = []
    for name, (x, y, errors) in series.items():
        axes.errorbar(x, y, yerr=errors, label=name, capsize=2, linewidth=1.5)
        words.append(f"{name} from {y[0]:.3f} to {y[-1]:.3f}")
    axes.set_xlabel("epoch")
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    axes.grid(alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return {"title": title, "svg": svg[svg.index("<svg") :], "alt": "; ".join(words)}


def _by_epoch(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.safetensors"), key=_epoch)


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["prompts"])  # noqa: SIM118


def _rank(name: str) -> tuple[int, str]:
    last = name.rpartition("/")[2]
    return (SCORE_ORDER.index(last) if last in SCORE_ORDER else len(SCORE_ORDER), name)


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    run = Path(sys.argv[1])
    write(run, run / "report.html")
    print(run / "report.html")
