"""scripts/compare_completions.py: one table, a row for each way to complete."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from tests.faults.runs import ROOT
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


def test_too_few_values_keep_their_measurements_without_a_spread() -> None:
    table = printed("compare_completions", "--groups=1", "--batches=2", "--repeats=1")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) == 6 and "nan" not in table


def test_what_no_values_give_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("compare_completions")
    unknown = float("nan")
    assert script.spread([unknown, unknown]) == "unknown"
    assert script.spread([unknown, 0.5]) == "0.500 ± unknown"
    assert script.spread([0.25, unknown, 0.75]) == "0.500 ± 0.354"
    still, moving = torch.ones(3, 2), torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    assert math.isnan(script.least_correlation(still, moving))
    assert script.least_correlation(moving, moving) == pytest.approx(1)
