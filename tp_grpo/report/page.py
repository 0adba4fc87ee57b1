"""The page: one file with its style and its scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from ml_collections import ConfigDict

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.observe import alarms
from tp_grpo.observe.tracking import by_epoch
from tp_grpo.report import charts, reference
from tp_grpo.report.data import AXES, Run, before_and_after, differences, gains, read_all
from tp_grpo.report.reference import Curves
from tp_grpo.report.strips import BUDGET, trajectories
from tp_grpo.store import files

PAIRS = 48  # before and after, in a page


def write(folders: Path | Sequence[Path], page: Path, *, against: Curves | None = None) -> None:
    """Read the runs and write the page; `against`: reference curves of `reference.load`.

    Raises ValueError when a folder holds no run.
    """
    runs = read_all([folders] if isinstance(folders, Path) else folders)
    bands = reference.chosen(against, runs) if against else []
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "compact": compact}
    payload = charts.payload(runs, bands)
    drawn = list(enumerate(payload["charts"]))
    html = environment.get_template("page.html.jinja").render(
        title=" · ".join(run.name for run in runs),
        runs=[_facts(run, share=1 / len(runs)) for run in runs],
        differs=differences([run.config for run in runs]),
        axes=AXES,
        sections=[
            (name, note, [(i, chart) for i, chart in drawn if chart["section"] == name])
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
    """What the template shows of a run; `share`: its part of the page's pictures."""
    headline, pairs = gains(run.folder), math.ceil(share * PAIRS)
    samples = before_and_after(run.folder, headline[0]["name"], pairs) if headline else []
    return {
        "name": run.name,
        "config": run.config,
        "objective": _objective(run.config),
        "random": _random(run.config),
        "alarms": _alarms(run),
        "settings": json.dumps(run.config, indent=1, sort_keys=True),
        "epochs": max([0, *(epoch for epoch in run.train.get("epoch", []) if epoch)]),
        "updates": _last(run, "updates"),
        "evaluations": _last(run, "evaluations"),
        "minutes": run.seconds / 60,
        "headline": headline,
        "samples": samples,
        "groups": trajectories(run.folder, share * BUDGET),
        "kept_epochs": len(by_epoch(run.folder / "ladders")),
        "turning": charts.turning_points(run),
        "phases": charts.phases(run),
    }


def _objective(config: Mapping[str, Any]) -> str:
    """The objective's name; runs from before there were several have GRPO's."""
    name: str = config.get("objective", {}).get("name", "grpo")
    return name


def _random(config: Mapping[str, Any]) -> str:
    """What sampling draws at random, in words."""
    sample, name = config["sample"], _objective(config)
    start, size, steps = sample["window_start"], sample["window_size"], sample["steps"]
    if name in OBJECTIVES and OBJECTIVES[name].noised:
        return f"none: ODE of {steps} steps"
    how = f"{sample['kind']}, noise {sample['noise_level']}"
    window = f"{start}–{start + size - 1} of {steps}"
    if sample.get("groups") == "shared_state":
        return f"{how}, one step of {window}"
    if (moving := sample.get("window", "fixed")) != "fixed":
        return f"{how}, {size} of {steps} steps in a {moving} window"
    return f"{how}, steps {window}"


def _alarms(run: Run) -> list[alarms.Alarm]:
    """Alarms raised by the run's last epoch; none if its settings do not mention alarms."""
    if "alarms" not in run.config.get("tracking", {}):
        return []
    return alarms.check(run.history, ConfigDict(run.config, allow_dotted_keys=True))


def _last(run: Run, name: str) -> float:
    return next((v for v in reversed(run.train.get(name, [])) if v is not None), 0)


def number(value: float | None, places: int = 2, sign: str = "") -> str:
    """A number as in print: a true minus, and "unknown" for None and NaN."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:{sign}.{places}f}".replace("-", "−")


def signed(value: float | None, places: int = 2) -> str:
    return number(value, places, "+")


def compact(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
