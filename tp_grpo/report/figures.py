"""The page's figures as PNG files, for papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tp_grpo.observe.tracking import by_epoch
from tp_grpo.report import charts, reference
from tp_grpo.report.charts import Chart
from tp_grpo.report.data import AXES, Run, read_all, tensors
from tp_grpo.report.reference import Curves
from tp_grpo.report.strips import turn

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6a00", "#000000", "#56b4e9")
GREY = "#666666"
MARKS, DASHES = "os^Dv", ("-", "--", ":", "-.", (0, (1, 5)), (0, (14, 5)), (0, (3, 7)))
TURNS = {"good": (COLOURS[0], "o", "-"), "bad": (COLOURS[1], "s", "--"), "even": (GREY, "D", "-")}
WIDE, MAX_ROWS = 3, 8
MANY = 30  # points of a training curve that is smoothed


def save(
    folders: Sequence[Path], out: Path, *, axis: str = "updates", against: Curves | None = None
) -> list[Path]:
    """A file a section of curves; for each run its turning points and a group of its ladders.

    The group is one of images where ladders have one reward each.
    Raises ValueError for a folder that holds no run.
    """
    runs = read_all(folders)
    bands = reference.chosen(against, runs) if against else []
    drawn, figures = charts.charts(runs), {}
    for section in charts.SECTIONS:
        shown = [chart for chart in drawn if chart.section == section]
        if shown:
            figures[section.lower().replace(" ", "-")] = _curves(runs, shown, axis, bands)
    for run in runs:
        name = run.name.replace("/", "-")
        if turning := charts.turning_points(run):
            figures[f"turning-points-{name}"] = _histogram(turning)
        if paths := by_epoch(run.folder / "ladders"):
            single = tensors(paths[-1])[0]["images"].shape[1] == 1
            draw = _gallery if single else _filmstrips
            figures[f"{'images' if single else 'trajectories'}-{name}"] = draw(paths[-1])
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    return [out / f"{name}.png" for name in figures]


def _curves(runs: list[Run], shown: list[Chart], axis: str, bands: list[dict[str, Any]]) -> Figure:
    across = min(WIDE, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(4.2 * across, 2.9 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for chart, axes in zip(shown, panels, strict=False):
        for band in bands:
            _band(axes, band, chart, axis)
        for number, run in enumerate(runs):
            _lines(axes, run, number, chart, axis)
        axes.set_title(chart.title, fontsize=9)
        axes.set_xlabel(AXES[axis], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(chart.keys) > 1:
            axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(shown) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, run: Run, number: int, chart: Chart, axis: str) -> None:
    table, colour = getattr(run, chart.table), COLOURS[number % len(COLOURS)]
    for k, key in enumerate(key for key in chart.keys if key in table):
        x, y, error = _known(table[axis], table[key], table.get(f"{key}_se"))
        label = f"{run.name} {key.removeprefix('seconds_')}" if len(chart.keys) > 1 else run.name
        style: dict[str, Any] = {"color": colour, "linestyle": DASHES[k % len(DASHES)]}
        if chart.table == "train" and len(x) >= MANY:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.7)
            y, error = running_mean(y), running_mean(np.nan_to_num(error))
            axes.fill_between(x, y - error, y + error, color=colour, alpha=0.18, linewidth=0)
        else:
            axes.errorbar(x, y, error, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
            style["marker"] = MARKS[number % len(MARKS)]
        axes.plot(x, y, label=label, **style)


def _band(axes: Axes, band: dict[str, Any], chart: Chart, axis: str) -> None:
    table = band[chart.table]
    if len(chart.keys) > 1 or chart.keys[0] not in table:
        return
    colour = GREY if band["run"] is None else COLOURS[band["run"] % len(COLOURS)]
    columns = [table[chart.keys[0]][name] for name in ("mean", "low", "high")]
    x, *levels = _known(table[axis], *columns)
    mean, low, high = map(running_mean, levels) if chart.table == "train" else levels
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, mean, "--", color=colour, linewidth=1, label=f"reference {band['label']}")


def running_mean(y: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): the centred mean over a fifteenth of the points, fewer at the ends."""
    half = len(y) // MANY
    return np.array([y[max(0, i - half) : i + half + 1].mean() for i in range(len(y))])


def _known(x: list[Any], y: list[Any], *others: list[Any] | None) -> list[np.ndarray]:
    """The columns, without the rows where x or y is unknown; NaN where another one is."""
    there = [a is not None and b is not None for a, b in zip(x, y, strict=True)]
    columns = [x, y, *([None] * len(x) if column is None else column for column in others)]
    return [np.array(column, dtype=float)[there] for column in columns]


def _histogram(turning: dict[str, Any]) -> Figure:
    """A panel for each span of epochs: the share of trajectories that turn at each step."""
    count = len(turning["spans"])
    figure = Figure(figsize=(1.1 * count + 0.8, 2.4), layout="constrained")
    shares = np.array(turning["shares"])
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for span, axes in enumerate(panels):
        axes.barh(turning["steps"], shares[:, span], color=COLOURS[0])
        axes.set_title(turning["spans"][span], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks(turning["steps"])
    panels[0].invert_yaxis()
    panels[0].set_ylabel("step", fontsize=8)
    figure.suptitle("share of trajectories with a turning point, by epochs", fontsize=9)
    return figure


def _filmstrips(path: Path) -> Figure:
    kept, prompts = tensors(path)
    ids = kept["group_id"][: len(kept["images"])]
    rows = (ids == ids[0]).nonzero().flatten().tolist()[:MAX_ROWS]
    across = kept["images"].shape[1]
    figure = Figure(figsize=(1.2 * across + 0.6, 2.1 * len(rows) + 0.5), layout="constrained")
    grid = figure.add_gridspec(2 * len(rows), across, height_ratios=[1.2, 0.9] * len(rows))
    low, high = kept["ladder"][rows].nan_to_num().aminmax()
    margin = max(0.2 * float(high - low), 1e-3)
    for line, i in enumerate(rows):
        for k in range(across):
            axes = figure.add_subplot(grid[2 * line, k])
            axes.imshow(kept["images"][i, k].numpy(), interpolation="nearest")
            axes.set_title(f"{kept['ladder'][i, k]:.2f}", fontsize=8)
            axes.axis("off")
        axes = figure.add_subplot(grid[2 * line + 1, :])
        _ladder(axes, {name: kept[name][i] for name in ("ladder", "reward", "turning")})
        axes.set_ylim(float(low) - margin, float(high) + margin)
    legend = "round: a turn for the better, square: for the worse"
    figure.suptitle(f"“{prompts[0]}”\n{legend}", fontsize=9, parse_math=False)
    return figure


def _gallery(path: Path) -> Figure:
    """The first group's images with their rewards and advantages, the highest reward first."""
    kept, prompts = tensors(path)
    ids = kept["group_id"][: len(kept["images"])]
    rows = (ids == ids[0]).nonzero().flatten()
    reward, advantage = kept["ladder"][rows, -1], kept["advantage"][rows, 0]
    order = reward.nan_to_num(-math.inf).argsort(descending=True).tolist()
    across = min(MAX_ROWS, len(order))
    down = -(-len(order) // across)
    figure = Figure(figsize=(1.2 * max(across, 4), 1.6 * down + 0.7), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for i, axes in zip(order, panels, strict=False):
        axes.imshow(kept["images"][rows[i], 0].numpy(), interpolation="nearest")
        axes.set_title(f"{reward[i]:.2f} (A {advantage[i]:+.1f})", fontsize=7)
    known = reward[reward.isfinite()]
    legend = "reward (A: advantage)"
    if "fork" in kept:
        step = int(kept["fork"][rows[0]])
        legend += f"; forked at step {step}, value of the state {known.mean():.3f}"
    figure.suptitle(f"“{prompts[0]}”\n{legend}", fontsize=9, parse_math=False)
    return figure


def _ladder(axes: Axes, kept: dict[str, Any]) -> None:
    ladder, credit = kept["ladder"].tolist(), kept["reward"].tolist()
    axes.plot(range(len(ladder)), ladder, "-o", color=GREY, markersize=3)
    turns = kept["turning"].nonzero().flatten().tolist()
    for k in turns if len(ladder) == len(credit) + 1 else []:
        color, mark, dash = TURNS[turn(credit[k])]
        middle = (ladder[k] + ladder[k + 1]) / 2
        ring: dict[str, Any] = {"fillstyle": "none", "markersize": 11, "markeredgewidth": 2}
        axes.plot(k + 0.5, middle, mark, color=color, **ring)
        axes.plot([k, k + 1], ladder[k : k + 2], dash, color=color, linewidth=2)
    axes.set_xlim(-0.5, len(ladder) - 0.5)
    axes.set_xticks([])
    axes.tick_params(labelsize=7)
