"""The page: everything in one file, the style and the scripts too."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from ml_collections import ConfigDict

from tp_grpo.observe import alarms
from tp_grpo.report import charts, reference
from tp_grpo.report.data import Run, before_and_after, by_epoch, differences, gains, read_all
from tp_grpo.report.strips import BUDGET, trajectories
from tp_grpo.store import files

PAIRS = 48  # before and after, in a page


def write(
    folders: Path | Sequence[Path], page: Path, *, against: dict[str, Any] | None = None
) -> None:
    """Read the runs and write the page; `against`: reference curves as `reference.load` gives them.

    Raises ValueError when a folder holds no run.
    """
    runs = read_all([folders] if isinstance(folders, Path) else folders)
    bands = reference.chosen(against, runs) if against else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": "{:.0%}".format,
        "compact": compact,
    }
    payload = charts.payload(runs, bands)
    html = environment.get_template("page.html.jinja").render(
        title=" · ".join(run.name for run in runs),
        runs=[_facts(run, share=1 / len(runs)) for run in runs],
        differs=differences([run.config for run in runs]),
        sections=[
            (
                name,
                note,
                [
                    (i, chart)
                    for i, chart in enumerate(payload["charts"])
                    if chart["section"] == name
                ],
            )
            for name, note in charts.SECTIONS.items()
        ],
        silent=charts.silent(runs),
        bands=bands,
        against=against["name"] if against else "",
        # "<" would end the script element that holds it.
        data=json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c"),
    )
    with files.whole(page) as draft:
        draft.write_text(html, encoding="utf-8")


def _facts(run: Run, share: float) -> dict[str, Any]:
    """What the template tells of a run; `share` of the page's pictures is its own."""
    headline, groups = gains(run.folder), trajectories(run.folder, share * BUDGET)
    return {
        "name": run.name,
        "config": run.config,
        "alarms": _alarms(run),
        "settings": json.dumps(run.config, indent=1, sort_keys=True),
        "epochs": max([0, *(epoch for epoch in run.train.get("epoch", []) if epoch)]),
        "updates": _last(run, "updates"),
        "evaluations": _last(run, "evaluations"),
        "minutes": run.seconds / 60,
        "headline": headline,
        "samples": before_and_after(run.folder, headline[0]["name"], math.ceil(share * PAIRS))
        if headline
        else [],
        "groups": groups,
        "kept_epochs": len(by_epoch(run.folder / "ladders")),
        "turning": charts.turning_points(run),
        "phases": charts.phases(run),
    }


def _alarms(run: Run) -> list[alarms.Alarm]:
    """Those that stand after the run's last line; none of a run whose settings know of no alarms."""
    if "alarms" not in run.config.get("tracking", {}):
        return []
    return alarms.check(run.history, ConfigDict(run.config, allow_dotted_keys=True))


def _last(run: Run, name: str) -> float:
    known = [value for value in run.train.get(name, []) if value is not None]
    return known[-1] if known else 0


def number(value: float | None, places: int = 2) -> str:
    """A number as prose has it: a true minus, "unknown" where there is none."""
    return "unknown" if value is None or value != value else f"{value:.{places}f}".replace("-", "−")


def signed(value: float | None, places: int = 2) -> str:
    return (
        "unknown" if value is None or value != value else f"{value:+.{places}f}".replace("-", "−")
    )


def compact(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
