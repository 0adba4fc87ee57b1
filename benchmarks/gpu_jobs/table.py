"""The report: a table for each job, to be pasted into the docs as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date


def markdown(
    rows: Sequence[Mapping[str, object]],
    titles: Mapping[str, str],
    missing: Sequence[str],
    *,
    tiny: bool,
) -> str:
    """rows: job, case and figures; titles: of the jobs; missing: cases without figures, and why."""
    lines = [f"`python benchmarks/gpu.py{' --tiny' if tiny else ''}`, {date.today()}."]
    if tiny:
        lines[0] += " Sizes for a CPU, not those of the titles: these figures say nothing."
    for job, title in titles.items():
        mine = [row for row in rows if row["job"] == job]
        if mine:
            devices = "; ".join(dict.fromkeys(str(row["on"]) for row in mine if "on" in row))
            lines += ["", f"{title} {devices}".strip(), "", *_table(mine)]
    if missing:
        lines += ["", "Without figures:", "", *(f"- {words}" for words in missing)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Wide where there are several rows; a row alone, such as the device, is a line a figure."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in ("job", "on")))
    parts, lines = _alike(rows), list[str]()
    for part in parts:
        mine = [name for name in columns if any(row.get(name) is not None for row in part)]
        if len(part) == 1 and len(parts) > 1:
            cells = [[name, _cell(part[0].get(name))] for name in mine if name != "case"]
            lines += [*_lines([str(part[0]["case"]), ""], cells), ""]
        else:
            lines += _lines(mine, [[_cell(row.get(name)) for name in mine] for row in part])
    return lines


def _alike(rows: Sequence[Mapping[str, object]]) -> list[list[Mapping[str, object]]]:
    """Rows in parts, where each shares a figure with another of its part."""
    parts: list[list[Mapping[str, object]]] = []
    for row in rows:
        for part in parts:
            if (set(row) & set().union(*part)) - {"job", "case", "on"}:
                part.append(row)
                break
        else:
            parts.append([row])
    return parts


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
