"""Draw one trajectory of a run with its ladder: the completed images, their rewards, the turning points.

python scripts/ladder_figure.py runs/quickstart ladder.png --epoch 35 --row 3
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from safetensors import safe_open

matplotlib.use("agg")
import matplotlib.pyplot as plt

GOOD, BAD, PLAIN = "#0072b2", "#d55e00", "#888888"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture to write")
    parser.add_argument(
        "--epoch", type=int, help="whose ladders to take; default: the newest that are kept"
    )
    parser.add_argument(
        "--row", type=int, help="of the trajectory; default: the first with most turning points"
    )
    arguments = parser.parse_args()
    folder = arguments.run / "ladders"
    epochs = [int(path.stem.removeprefix("epoch-")) for path in folder.glob("epoch-*.safetensors")]
    epoch = max(epochs) if arguments.epoch is None else arguments.epoch
    with safe_open(folder / f"epoch-{epoch}.safetensors", framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        prompts = json.loads(file.metadata()["prompts"])
    entries, steps = kept["ladder"].shape[1], kept["turning"].shape[1]
    if entries != steps + 1:
        parser.error(
            f"the ladders have {entries} rewards for {steps} steps: the figure needs one before and after each"
        )
    count = kept["turning"][: len(kept["images"])].sum(1)
    row = count.tolist().index(count.max()) if arguments.row is None else arguments.row
    draw(
        {name: value[row] for name, value in kept.items() if name != "states"},
        prompts[row],
        arguments.out,
    )


def draw(kept: dict, prompt: str, out: Path) -> None:
    """Completions above, their rewards as a line below, an arrow a step."""
    ladder = kept["ladder"].tolist()
    n = len(ladder)
    figure = plt.figure(figsize=(1.7 * n, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, n, height_ratios=[1, 1.7])
    for k in range(n):
        axes = figure.add_subplot(grid[0, k])
        axes.imshow(kept["images"][k].numpy(), interpolation="nearest")
        axes.set_title(
            ["ODE only", *[f"{i} SDE step{'s' * (i > 1)}, ODE" for i in range(1, n)]][k], fontsize=9
        )
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    for k in range(n - 1):
        turning, reward = bool(kept["turning"][k]), float(kept["reward"][k])
        color = (GOOD if reward > 0 else BAD) if turning else PLAIN
        axes.plot([k, k + 1], ladder[k : k + 2], color=color, linewidth=3 if turning else 1.5)
        label = f"step {k}: {float(kept['increment'][k]):+.2f}"
        if turning:
            label += f"\nturning point\ncredit {reward:+.2f}"
        # To the right of a steep line, above a flat one.
        steep = abs(ladder[k + 1] - ladder[k]) > 0.3 * (max(ladder) - min(ladder))
        offset, va = ((24, -8), "top") if steep else ((0, 8), "bottom")
        at = (k + 0.5, (ladder[k] + ladder[k + 1]) / 2)
        ha = "left" if steep else "center"
        axes.annotate(
            label, at, offset, textcoords="offset points", ha=ha, va=va, fontsize=9, color=color
        )
    axes.scatter(range(n), ladder, color="black", zorder=3)
    for k, reward in enumerate(ladder):
        axes.annotate(
            f"$R_{k}$ = {reward:.2f}",
            (k, reward),
            (0, -16),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xlim(-0.5, n - 0.5)
    axes.margins(y=0.35)
    axes.set_xticks([])
    axes.set_ylabel("reward")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(f"“{prompt}”", fontsize=11)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
