"""Where a real epoch's seconds go: python benchmarks/phases.py [--recipe paper]."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import diffusers
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import tp_grpo as algorithm
from tp_grpo.trainer import Trainer

REST, LIMIT = "other", 0.03  # of an epoch, that no phase accounts for
WORK = {"rollout": "evaluations_rollout", "decode": "images_decode", "update": "evaluations_update"}


def report(recipe: str, epochs: int) -> list[str]:
    """Medians over the epochs after the first. AssertionError if too many seconds are missing."""
    lines = _train(recipe, epochs)[1:]
    names = [
        name for name in lines[0] if name.partition("_")[0] in ("seconds", "evaluations", "images")
    ]
    median = {name: statistics.median(line[name] for line in lines) for name in names}
    phases = {
        name.removeprefix("seconds_"): value
        for name, value in median.items()
        if name.startswith("seconds_")
    }
    total = sum(phases.values())
    rows = ["| phase | seconds | share | evaluations or images |", "|---|---|---|---|"]
    for name, seconds in phases.items():
        work = f"{median[WORK[name]]:.0f} {WORK[name].partition('_')[0]}" if name in WORK else ""
        rows.append(
            f"| {name.replace('_', ' ')} | {seconds:.3f} | {seconds / total:.1%} | {work} |"
        )
    share = phases[REST] / total
    assert share <= LIMIT, f"{share:.1%} of an epoch belongs to no phase; at most {LIMIT:.0%} may"
    return [
        *rows,
        "",
        f"`{recipe}`, median of {len(lines)} epochs; the phases account for {1 - share:.1%}.",
    ]


def _train(recipe: str, epochs: int) -> list[dict[str, float]]:
    """The metrics of a run's epochs."""
    config = algorithm.get_config(recipe)
    config.update(epochs=epochs)
    config.eval.update(every=epochs, prompts=2, members=1, steps=2)
    config.tracking.update(trackers=(), images_every=epochs)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(sys.stderr),
    ):  # the run's own lines
        config.output_dir = folder
        Trainer(config).run()
        text = (Path(folder) / config.run_name / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    print("\n".join(report(arguments.recipe, arguments.epochs)))


if __name__ == "__main__":
    main()
