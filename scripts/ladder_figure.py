"""Draw one trajectory of a run: the completed images, their rewards, the turning points.

    python scripts/ladder_figure.py runs/quickstart ladder.png --epoch 35 --row 11

docs/ladder.png, whose epoch the quick start keeps only if it is the last, was made by

    bash scripts/quickstart.sh --config.run_name=turn --config.epochs=20
    python scripts/ladder_figure.py runs/turn docs/ladder.png --row 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reward_models import terminal
from tp_grpo.store import files
from tp_grpo.store.files import expanded

GOOD, BAD, PLAIN = "#0072b2", "#d55e00", "#666666"


def main() -> None:
    terminal.accept_any_text()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("run", type=expanded, metavar="RUN", help="the run's folder")
    parser.add_argument("out", type=expanded, metavar="OUT.png", help="the picture to write")
    parser.add_argument("--epoch", type=int, help="of the ladders; default: the newest kept")
    about = "of the trajectory; default: the first with most turning points"
    parser.add_argument("--row", type=int, help=about)
    options = parser.parse_args()
    try:
        figure = draw(*trajectory(options.run, options.epoch, options.row))
        files.check_writable(options.out.parent, "OUT")
        figure.savefig(options.out, dpi=110)
    except (ValueError, OSError) as error:
        parser.error(files.in_words(error) if isinstance(error, OSError) else str(error))


def trajectory(run: Path, epoch: int | None, row: int | None) -> tuple[dict[str, Any], str]:
    """Of the newest ladders and the row with most turning points, unless named; and its prompt.

    Raises ValueError for ladders or a row that the run does not have.
    """
    from tp_grpo.report.data import by_epoch, tensors

    name = "*" if epoch is None else epoch
    paths = [p for p in by_epoch(run / "ladders") if p.match(f"epoch-{name}.*")]
    if not paths:
        raise ValueError(f"{run} holds no ladders of epoch {name}")
    kept, prompts = tensors(paths[-1])
    entries, steps = kept["ladder"].shape[1], kept["turning"].shape[1]
    if entries != steps + 1:
        needed = "the figure needs one before and after each step"
        raise ValueError(f"the ladders have {entries} rewards for {steps} steps: {needed}")
    turns = kept["turning"][: len(kept["images"])].sum(1)
    row = int(turns.argmax()) if row is None else row
    if not 0 <= row < len(turns):
        raise ValueError(f"--row {row}: {paths[-1]} has pictures of rows 0 to {len(turns) - 1}")
    return {name: value[row] for name, value in kept.items() if name != "states"}, prompts[row]


def draw(trajectory: dict[str, Any], prompt: str) -> Figure:
    """The completions, below them their rewards as a line, below that what each step added."""
    from matplotlib.figure import Figure

    n = len(trajectory["ladder"])
    figure = Figure(figsize=(2 * n, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, n, height_ratios=[1, 1.1])
    for k, image in enumerate(trajectory["images"]):
        axes = figure.add_subplot(grid[0, k])
        axes.imshow(image.numpy(), interpolation="nearest")
        axes.set_title(f"{k} random step{'s' * (k != 1)},\nthen the ODE", fontsize=10)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    for k in range(n - 1):
        _step(axes, trajectory, k)
    _rewards(axes, trajectory["ladder"].tolist())
    axes.set_xlim(-0.5, n - 0.5)
    axes.margins(y=0.25)
    axes.set_xticks([])
    axes.set_ylabel("reward", fontsize=11)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(f"“{prompt}”", fontsize=13, parse_math=False)
    return figure


def _step(axes: Axes, trajectory: dict[str, Any], k: int) -> None:
    ladder, turning = trajectory["ladder"].tolist(), bool(trajectory["turning"][k])
    credit = float(trajectory["reward"][k])
    color = (GOOD if credit > 0 else BAD) if turning else PLAIN
    axes.plot([k, k + 1], ladder[k : k + 2], color=color, linewidth=4 if turning else 2)
    label = f"step {k}: ${ladder[k + 1] - ladder[k]:+.2f}$"
    if turning:
        axes.axvspan(k, k + 1, color=color, alpha=0.1, linewidth=0)
        label += f"\nturning point\n$R_{{{len(ladder) - 1}}} - R_{{{k}}}$ = ${credit:+.2f}$"
    style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 11, "color": color}
    axes.text(k + 0.5, -0.03, label, transform=axes.get_xaxis_transform(), **style)


def _rewards(axes: Axes, ladder: list[float]) -> None:
    """Points, labelled where the line leaves room: below a valley, else above, beside a slope."""
    axes.scatter(range(len(ladder)), ladder, color="black", s=45, zorder=3)
    for k, reward in enumerate(ladder):
        before, after = reward - ladder[max(k - 1, 0)], reward - ladder[min(k + 1, len(ladder) - 1)]
        slope = before * after < 0
        side = ("right" if before > 0 else "left") if slope else "center"
        offset, edge = (10, "bottom") if slope or before + after >= 0 else (-10, "top")
        style: dict[str, Any] = {"ha": side, "va": edge, "fontsize": 11}
        text = f"$R_{{{k}}}$ = {reward:.2f}"
        axes.annotate(text, (k, reward), (0, offset), textcoords="offset points", **style)


if __name__ == "__main__":
    main()
