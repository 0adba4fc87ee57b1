"""Reference curves: bands over the seeds of a recipe, kept as JSON files in docs/curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tp_grpo.report.charts import HELD_OUT, TRAINING, charts, digits
from tp_grpo.report.data import AXES, Run, Table, differences
from tp_grpo.store import files

Curves = dict[str, Any]  # {"name", "bands"}
TABLES = ("train", "eval")
LEVELS: dict[str, Callable[[list[Any]], float]]
LEVELS = {"mean": statistics.mean, "low": min, "high": max}
CURVES = Path(__file__).resolve().parents[2] / "docs" / "curves"


def make(methods: Mapping[str, list[Run]]) -> dict[str, Any]:
    """A band a method, {"label", "seeds", "config", "train", "eval"}, from its runs.

    Tables have the columns of AXES and, for each score, {"mean", "low", "high"} over the seeds.
    Raises ValueError when the runs of a method differ in more than their seed.
    """
    return {"bands": [_band(label, runs) for label, runs in methods.items()]}


def _band(label: str, runs: list[Run]) -> dict[str, Any]:
    differ = differences([run.config for run in runs])
    differ.pop("seed", None)
    if differ:
        raise ValueError(f"{label}: the runs differ in more than the seed: {differ}")
    seeds = [run.config["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{label}: seeds {seeds}: the same seed twice is no second run")
    names = ("run_name", "output_dir", "seed")
    config = {name: value for name, value in runs[0].config.items() if name not in names}
    band = {"label": label, "seeds": seeds, "config": config}
    drawn = [chart for chart in charts(runs) if chart.section in (HELD_OUT, TRAINING)]
    for table in TABLES:
        scores = [chart.keys[0] for chart in drawn if chart.table == table]
        band[table] = _table([getattr(run, table) for run in runs], scores)
    return band


def load(name: str) -> Curves:
    """The curves `name` of docs/curves, or a .json file's. ValueError names the known ones."""
    path = files.expanded(name) if name.endswith(".json") else CURVES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in CURVES.glob("*.json"))) or "none"
        raise ValueError(f"no reference curves {name!r} ({path}); known: {known}")
    curves = files.read_object(path)
    if missing := {"bands"} - curves.keys():
        raise ValueError(f"{path} holds no reference curves: it lacks {', '.join(missing)}")
    bands = curves["bands"] if isinstance(curves["bands"], list) else [None]
    for number, band in enumerate(bands, start=1):
        if lacking := _lacking(band):
            raise ValueError(f"{path}: band {number} lacks {', '.join(lacking)}")
    return {"name": path.stem, **curves}


def _lacking(band: Any) -> list[str]:
    """What a band needs and does not have."""
    held = band if isinstance(band, dict) else {}
    tables = {name: held[name] for name in TABLES if isinstance(held.get(name), dict)}
    lacking = [] if "label" in held else ["label"]
    lacking += [name for name in ("config", *TABLES) if not isinstance(held.get(name), dict)]
    if "config" not in lacking and not isinstance(held["config"].get("credit"), dict):
        lacking.append("config.credit")
    for table, columns in tables.items():
        lacking += [f"{table}.{axis}" for axis in AXES if axis not in columns]
        lacking += [
            f"{table}.{name}.{level}"
            for name, levels in columns.items()
            if name not in AXES
            for level in LEVELS
            if not isinstance(levels, dict) or level not in levels
        ]
    return lacking


def chosen(curves: Curves, runs: list[Run]) -> list[dict[str, Any]]:
    """The bands of the runs' methods, or all bands if none matches.

    Each with `run`, the first run of its method (or None), and `differs`, rows {"run", "field",
    "reference", "value"} of what such runs set differently; None for a field that one lacks.
    """
    methods = [_method(run.config) for run in runs]
    bands = [band for band in curves["bands"] if _method(band["config"]) in methods]
    rows = []
    for band in bands or curves["bands"]:
        method = _method(band["config"])
        same = [run for run, other in zip(runs, methods, strict=True) if other == method]
        differs = [
            {"run": run.name, "field": field, "reference": reference, "value": value}
            for run in same
            for field, (reference, value) in differences([band["config"], run.config]).items()
            if field != "seed"
        ]
        rows.append(band | {"run": runs.index(same[0]) if same else None, "differs": differs})
    return rows


def _method(config: Mapping[str, Any]) -> tuple[str, str]:
    """The credit and the loss; runs made before there was a choice of losses have GRPO's."""
    return config["credit"]["name"], config.get("objective", {}).get("name", "grpo")


def _table(tables: list[Table], scores: list[str]) -> dict[str, Any]:
    """The epochs that all have. Updates and evaluations are equal; seconds are the median."""
    first, *others = (table.get("epoch", []) for table in tables)
    epochs = [epoch for epoch in first if all(epoch in other for other in others)]

    def across(name: str, merge: Callable[[list[Any]], float]) -> list[float | None]:
        rows = [[table[name][table["epoch"].index(epoch)] for table in tables] for epoch in epochs]
        return [None if None in row else digits(merge(row)) for row in rows]

    columns: dict[str, Any] = {axis: across(axis, statistics.median) for axis in AXES}
    for name in scores:
        columns[name] = {label: across(name, merge) for label, merge in LEVELS.items()}
    return columns
