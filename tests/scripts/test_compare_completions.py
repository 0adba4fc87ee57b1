"""scripts/compare_completions.py: one table, a row for each way to complete."""

from __future__ import annotations

from tests.forked import printed


def test_completions_are_compared_on_a_real_model() -> None:
    table = printed("compare_completions", "--groups=2", "--batches=2", "--repeats=1")
    lines = [line.split(" | ") for line in table.splitlines() if "|" in line]
    rows = {cells[0].strip("| "): cells for cells in lines}
    assert rows["`euler`"][3] == "1.000 ± 0.000"
    assert int(rows["`euler`"][1]) > int(rows["`tweedie`"][1])
    assert set(rows) >= {"`euler`", "`reuse`", "`multistep`, 3", "`strided`, 2", "`tweedie`"}
