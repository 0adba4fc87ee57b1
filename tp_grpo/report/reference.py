"""Reference curves: bands over the seeds of a recipe, kept as a small JSON file in docs/curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tp_grpo.report.charts import HELD_OUT, TRAINING, charts, digits
from tp_grpo.report.data import AXES, Run, Table, differences

CURVES = Path(__file__).resolve().parents[2] / "docs" / "curves"


def make(methods: Mapping[str, list[Run]]) -> dict[str, Any]:
    """A band a method, {"label", "credit", "seeds", "config", "train", "eval"}, from the runs of its seeds.

    Tables hold columns of AXES and, for each score, {"mean", "low", "high"}: mean, least and greatest over the seeds.
    Raises ValueError when the runs of a method differ in more than their seed.
    """
    bands = []
    for label, runs in methods.items():
        other = {
            name: values
            for name, values in differences([run.config for run in runs]).items()
            if name != "seed"
        }
        if other:
            raise ValueError(f"{label}: the runs differ in more than the seed: {other}")
        seeds = [run.config["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{label}: seeds {seeds}: the same seed twice is no second run")
        tables = {
            name: _table([getattr(run, name) for run in runs], _scores(runs, name))
            for name in ("train", "eval")
        }
        config = {
            name: value
            for name, value in runs[0].config.items()
            if name not in ("run_name", "output_dir", "seed")
        }
        bands.append(
            {"label": label, "credit": config["credit"]["name"], "seeds": seeds, "config": config}
            | tables
        )
    return {"bands": bands}


def load(name: str) -> dict[str, Any]:
    """The curves called `name` in docs/curves, or those of a .json file. Raises ValueError naming those there are."""
    path = Path(name) if name.endswith(".json") else CURVES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in CURVES.glob("*.json"))) or "none"
        raise ValueError(f"there are no reference curves {name!r} ({path}); known: {known}")
    curves: dict[str, Any] = json.loads(path.read_text())
    return {"name": path.stem} | curves


def chosen(curves: dict[str, Any], runs: list[Run]) -> list[dict[str, Any]]:
    """The bands of the runs' credits, or all where none is of them.

    Each with `run`, the first run of its credit (None: there is none), and with what such runs set differently.
    """
    credits = [run.config["credit"]["name"] for run in runs]
    bands = [band for band in curves["bands"] if band["credit"] in credits] or curves["bands"]
    return [
        band
        | {
            "run": credits.index(band["credit"]) if band["credit"] in credits else None,
            "differs": _differs(band, runs),
        }
        for band in bands
    ]


def _differs(band: dict[str, Any], runs: list[Run]) -> list[dict[str, Any]]:
    """Rows {"run", "field", "reference", "own"} of the runs with the band's credit; None where a field is unknown."""
    rows = []
    for run in runs:
        if run.config["credit"]["name"] == band["credit"]:
            for field, (theirs, own) in differences([band["config"], run.config]).items():
                if field != "seed":
                    rows.append({"run": run.name, "field": field, "reference": theirs, "own": own})
    return rows


def _scores(runs: list[Run], table: str) -> list[str]:
    return [
        chart.keys[0]
        for chart in charts(runs)
        if chart.section in (HELD_OUT, TRAINING) and chart.table == table
    ]


def _table(tables: list[Table], scores: list[str]) -> dict[str, Any]:
    """Epochs that all have. Updates and evaluations are the same for all; seconds are the median's."""
    epochs = [
        epoch for epoch in tables[0]["epoch"] if all(epoch in table["epoch"] for table in tables)
    ]

    def across(name: str, merge: Callable[[list[float]], float]) -> list[float | None]:
        rows = [[table[name][table["epoch"].index(epoch)] for table in tables] for epoch in epochs]
        return [
            digits(merge([v for v in row if v is not None])) if None not in row else None
            for row in rows
        ]

    columns: dict[str, Any] = {axis: across(axis, statistics.median) for axis in AXES}
    for name in scores:
        columns[name] = {
            "mean": across(name, statistics.mean),
            "low": across(name, min),
            "high": across(name, max),
        }
    return columns
