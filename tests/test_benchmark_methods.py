"""benchmarks/methods.py: its runs, what it reads of them, and the tables it makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import marked_run
import methods
import methods_tables
import shared_states
from methods_tables import Line

from tp_grpo.plan import make_plan
from tp_grpo.settings import Settings

Smoke = Callable[..., ConfigDict]


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_is_a_config_that_plans(name: str) -> None:
    method = methods.METHODS[name]
    fields = method.fields | methods.COMMON | {"run_name": "run"}
    settings = Settings.read(marked_run.config_of(method.algorithm, "shapes_tiny", fields))
    assert make_plan(settings, 1).images == 96, "an epoch has as many images for all"


def test_seconds_become_the_epochs_that_end_nearest() -> None:
    assert methods.Job("NFT", 1, 1e-3, (70, 140)).epochs(2.8) == {70: 25, 140: 50}
    assert methods.Job("NFT", 1, 1e-3, (1,)).epochs(2.8) == {1: 1}


def test_runs_of_different_rates_have_folders_of_their_own() -> None:
    names = {methods.Job("Flow-GRPO", seed, rate, ()).name for seed in (1, 2) for rate in (1e-3, 2)}
    assert len(names) == 4


def test_a_marked_run_evaluates_at_its_marks_and_notes_what_epochs_cost(smoke: Smoke) -> None:
    config = smoke("shared_state", epochs=3, eval__prompts=2, eval__members=2, eval__images=4)
    marked_run.MarkedRun(config, [1, 3], base=True).run()
    folder = Path(config.output_dir) / config.run_name
    job = asdict(methods.Job("shared states", 7, 1e-3, (5, 15)))
    base, first, last = methods_tables.lines_of(folder, job, {5: 1, 15: 3}, base=True)
    assert (base.mark, base.epoch, base.updates, base.cpu_seconds) == (0, 0, 0, 0)
    assert (first.epoch, last.epoch, last.updates) == (1, 3, 6)
    assert 0 < first.cpu_seconds < last.cpu_seconds
    assert last.work["images_decode"] == 3 * first.work["images_decode"] == 3 * 16
    assert set(first.scores) >= {"exact", "graded", "count", "color", "shape"}
    assert 0 < base.diversity < 1
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    evaluated = [line["epoch"] for line in map(json.loads, lines) if line["kind"] == "eval"]
    assert evaluated == [0, 1, 3]


def test_a_run_need_not_evaluate_the_untrained_model_again(smoke: Smoke) -> None:
    config = smoke("flow_grpo", epochs=1, eval__prompts=1)
    marked_run.MarkedRun(config, [1], base=False).run()
    lines = (Path(config.output_dir) / config.run_name / "metrics.jsonl").read_text().splitlines()
    assert [x["epoch"] for x in map(json.loads, lines) if x["kind"] == "eval"] == [1]


def line(method: str, seed: int, mark: int, exact: float, rate: float = 1e-3) -> Line:
    work = dict.fromkeys(methods_tables.WORK, 1000 * mark)
    scores = dict.fromkeys(methods_tables.SHOWN, 0.5) | {"exact": exact}
    return Line("mark", method, seed, rate, mark, mark // 7, 0.0, mark, mark, work, scores, 0.2)


def test_the_rate_is_the_best_of_the_fifth_seed_at_the_mark() -> None:
    lines = [line("A", 5, 140, 0.3, 1e-3), line("A", 5, 140, 0.4, 2e-3), line("A", 5, 280, 0.9, 3)]
    lines += [line("A", 1, 140, 0.9, 7e-4), line("B", 5, 140, 0.1, 3e-3)]
    assert methods_tables.best_rates(lines, 5, 140) == {"A": 2e-3, "B": 3e-3}


def test_the_tables_have_scores_at_equal_seconds_and_when_the_baseline_was_reached(
    tmp_path: Path,
) -> None:
    lines = [line("Flow-GRPO", seed, 0, 0.2) for seed in (1, 2)]
    for seed, more in ((1, 0.0), (2, 0.02)):
        lines += [line("Flow-GRPO", seed, 280, 0.3 + more), line("Flow-GRPO", seed, 560, 0.4)]
        lines += [line("ours", seed, 280, 0.41 + more), line("ours", seed, 560, 0.5)]
    lines += [line("ours", 5, 140, 0.33)]
    results = tmp_path / "results.jsonl"
    for entry in lines:
        methods_tables.append(results, entry)
    assert methods_tables.read(results) == lines
    text = methods_tables.tables(lines, tmp_path / "figure.png")
    ours = next(row for row in text.splitlines() if row.startswith("| ours | 2 |"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[2:4] == ["0.420 ± 0.010", "0.500 ± 0.000"]
    assert cells[4] == "+0.300, +0.300"
    assert cells[5:] == ["140", "255"], "linear between the marks: 0.31 of 0.42, 0.4 of 0.42"
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "| ours | **0.330** |" in text


def test_a_method_whose_runs_ended_earlier_has_empty_cells(tmp_path: Path) -> None:
    lines = [line("Flow-GRPO", 1, mark, 0.2 + mark / 1e4) for mark in (0, 140, 280)]
    lines += [line("ours", 1, 140, 0.3)]
    text = methods_tables.tables(lines, tmp_path / "figure.png")
    ours = next(row for row in text.splitlines() if row.startswith("| ours | 1 |"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[2:4] == ["0.300", ""], "one seed has no standard error"
    assert cells[5:] == ["39"], "Flow-GRPO's 0.228 by a line from 0.200 to 0.300"


def test_the_seeds_of_a_method_have_one_learning_rate(tmp_path: Path) -> None:
    lines = [line("Flow-GRPO", seed, 0, 0.2) for seed in (1, 2)]
    lines += [replace(line("ours", 1, 140, 0.9), rate=3e-3), line("ours", 1, 140, 0.3)]
    lines += [line("ours", 2, 140, 0.5)]
    text = methods_tables.tables(lines, tmp_path / "figure.png")
    assert "| ours | 2 | 0.400 ± 0.100 |" in text


def test_a_seed_without_all_marks_is_left_out() -> None:
    lines = [line("Flow-GRPO", seed, 0, 0.2) for seed in (1, 2)]
    lines += [line("A", 1, 280, 0.3), line("A", 1, 560, 0.4), line("A", 2, 280, 0.9)]
    curve = methods_tables._curve(lines, "A")
    assert curve is not None
    assert curve.scores == [[0.2, 0.3, 0.4]]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"code 1; its words are in .*log"):
        methods.call_process({}, tmp_path / "log")
    assert "KeyError" in (tmp_path / "log").read_text()


def test_a_shared_state_trains_one_row_where_trajectories_train_each_step() -> None:
    size = shared_states.random_models.SIZES["small"]
    shared = shared_states.Group(
        size, 4, 2, rows=1, sample__groups="shared_state", objective__name="matching"
    )
    flow = shared_states.Group(size, 4, 2, rows=shared_states.GROUP)
    for group in (shared, flow):
        group.roll_out()
        group.update()
    rows = [g.updater.clock.lap()["evaluations_update"] for g in (shared, flow)]
    assert rows == [2, 2 * 2 * shared_states.GROUP], "with the frozen model's"
