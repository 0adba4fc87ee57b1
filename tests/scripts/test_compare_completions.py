"""scripts/compare_completions.py: one table, a row for each way to complete."""

from __future__ import annotations

from tests.forked import printed, script


def test_completions_are_compared_on_a_real_model() -> None:
    table = printed("compare_completions", "--groups=2", "--batches=2", "--repeats=1")
    lines = [line.split(" | ") for line in table.splitlines() if "|" in line]
    rows = {cells[0].strip("| "): cells for cells in lines}
    assert rows["`euler`"][3] == "1.000 ± 0.000"
    assert int(rows["`euler`"][1]) > int(rows["`tweedie`"][1])
    assert set(rows) >= {"`euler`", "`reuse`", "`multistep`, 3", "`strided`, 2", "`tweedie`"}


def test_a_scorer_that_compares_images_is_refused() -> None:
    scorers = "--config.rewards.scorers={'pickscore_rank': 1.0}"
    done = script("compare_completions", scorers)
    assert done.returncode == 2, done.stderr
    assert "pickscore_rank compares the images of a prompt; this script" in done.stderr
