"""The report's numbers, pages and figures of run folders written by hand."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from config import tp_grpo
from tests.report_runs import CONFIG, PROMPT, eval_line, evaluation, make, save_ladders, train_line
from tp_grpo import report
from tp_grpo.report import charts, data, figures, reference

ROOT = Path(__file__).parents[2]


def test_the_change_is_paired_and_nan_left_out(tmp_path: Path) -> None:
    evaluation(tmp_path, 0, [0.0, 1.0, 0.5])
    evaluation(tmp_path, 2, [0.2, 0.4, 0.1])
    evaluation(tmp_path, 10, [1.0, 1.0, float("nan")])
    first = report.gains(tmp_path)[0]
    assert first["name"] == "shapes/exact"
    assert first["n"] == 2
    assert (first["before"], first["after"], first["change"]) == (0.5, 1.0, 0.5)
    assert first["se"] == pytest.approx(0.5)
    assert first["epoch"] == 10


def test_evaluations_of_other_prompts_are_not_compared(tmp_path: Path) -> None:
    evaluation(tmp_path, 0, [0.0, 1.0, 0.5])
    evaluation(tmp_path, 1, [0.0, 1.0, 0.5], [PROMPT, "p2", "another"])
    with pytest.raises(ValueError, match="different prompts"):
        report.gains(tmp_path)


def test_the_page_is_whole_and_escapes_prompts(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=1)
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert "p&lt;1&gt;" in html
    assert PROMPT not in html
    assert html.count('class="step good"') == 2
    assert html.count('class="step bad"') == 1
    words = "increment −0.25, long-term reward −0.12, credit −0.12, advantage −1.00"
    assert f'aria-label="Step 2, turning point for the worse:\n{words}"' in html
    assert "Ladder of rewards: 0.75, 0.50, 0.62; 2 turning points" in html
    assert "after epoch 1" in html
    assert "−0.267 ± 0.240" in html


def test_a_run_that_was_killed_while_writing_has_a_page(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ep')
    report.write(run, run / "report.html")
    assert "<td>4</td>" in (run / "report.html").read_text()


def test_a_run_before_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=0)
    report.write(run, run / "report.html")
    assert "<h3>Trajectories" not in (run / "report.html").read_text()


def test_unknown_rewards_and_ladders_that_skip_states_are_told(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=1)
    kept, _ = data.tensors(run / "ladders" / "epoch-1.safetensors")
    kept["ladder"] = torch.tensor(
        [[0.0, 1.0], [0.5, 0.5], [float("nan"), 0.25]]
    )  # the foot and the end alone
    save_ladders(run, 1, kept | {"images": torch.zeros(3, 2, 8, 8, 3).byte()})
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert "Ladder of rewards: unknown, 0.25" in html
    assert (
        "Step 3, turning point for the better:\nincrement +0.75, credit +0.75, advantage +1.50"
        in html
    )
    assert figures.save([run], tmp_path)[-1].stem == "trajectories-run"


def test_a_ladder_of_one_reward_is_a_row_of_images(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=1, credit="terminal")
    kept, _ = data.tensors(run / "ladders" / "epoch-1.safetensors")
    kept |= {"ladder": torch.tensor([[1.0], [0.5], [0.25]]), "turning": torch.zeros(3, 2).bool()}
    save_ladders(run, 1, kept | {"images": torch.zeros(3, 1, 8, 8, 3).byte()})
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert 'alt="Image 3, reward 0.25, advantage −1.00"' in html
    assert 'class="ladder"' not in html


def test_the_alarms_that_stand_are_told_of_a_run_that_asks_for_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rewards": {"scorers": {"my.own:Scorer": 1.0}, "max_failed": 0.05}}
    settings |= {
        "train": {"beta": 0.0, "inner_epochs": 1, "updates_per_epoch": 1, "clip_range": 1e-4}
    }
    runs = [
        make(tmp_path / how, tracking={"alarms": how}, epochs=5, **settings)
        for how in ("warn", "off")
    ]
    for run in [*runs, make(tmp_path / "old", epochs=5)]:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text.replace('"zero_std": 0.125', '"zero_std": 0.75'))
    report.write([*runs, tmp_path / "old"], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("active alarms</h2>") == 1
    assert "<h2>warn: active alarms</h2>" in html
    assert "<li><b>zero std</b>, after epoch 5: 75% of the groups" in html
    assert html.count("To do: ") == 1


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        report.write(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("config.yaml", b"seed: [1", "config.yaml cannot be read: "),
        ("config.yaml", b"\xff\xfe\xff", "config.yaml cannot be read: "),
        ("config.yaml", b"- 1\n", "config.yaml holds no config"),
        ("evaluations/epoch-2.safetensors", b"half", "epoch-2.safetensors is damaged"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    run = make(tmp_path / "run", epochs=2)
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        report.write(run, run / "report.html")


def test_files_and_lines_that_are_not_ours_are_passed_over(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=2)
    report.write(run, tmp_path / "before.html")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"note": "mine"}\n{"kind": "train", "note": "mine"}\n')
        file.write('{"kind": "train", "epoch": 2, "note": "mine"}\n')
    (run / "evaluations" / "epoch-2 (copy).safetensors").write_bytes(b"mine")
    (run / "ladders" / "epoch-old.safetensors").write_bytes(b"mine")
    report.write(run, tmp_path / "after.html")
    assert (tmp_path / "after.html").read_text() == (tmp_path / "before.html").read_text()


@pytest.mark.parametrize(
    "content, words", [("{", "cannot be read"), ("[]", "holds a list"), ("{}", "lacks bands")]
)
def test_what_holds_no_reference_curves_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match=f"mine.json .*{words}"):
        reference.load(str(tmp_path / "mine.json"))


@pytest.mark.parametrize(
    "lost, words",
    [
        (("config", "credit"), r"lacks config\.credit$"),
        (("config",), "lacks config$"),
        (("eval",), "lacks eval$"),
        (("train", "updates"), r"lacks train\.updates$"),
        (("train", "reward", "low"), r"lacks train\.reward\.low$"),
        ((), "lacks label, config, train, eval$"),
    ],
)
def test_a_reference_band_that_is_incomplete_is_named(
    lost: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    curves = json.loads((reference.CURVES / "shapes_tiny.json").read_text())
    held = curves["bands"][1]
    for name in lost[:-1]:
        held = held[name]
    held.pop(lost[-1]) if lost else held.clear()
    (tmp_path / "mine.json").write_text(json.dumps(curves))
    with pytest.raises(ValueError, match=f"mine.json: band 2 {words}"):
        reference.load(str(tmp_path / "mine.json"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sample": None}, r"sample\.kind, sample\.noise_level, sample\.steps, "),
        ({"credit": "turning_point"}, r"credit\.name$"),
    ],
)
def test_a_config_without_what_a_report_shows_is_named(
    changes: dict, words: str, tmp_path: Path
) -> None:
    run = make(tmp_path / "run")
    (run / "config.yaml").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ValueError, match=rf"run/config\.yaml lacks {words}"):
        report.write(run, run / "report.html")


def test_a_hundred_epochs_of_noise_are_less_than_ten_megabytes(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=100)
    noise = torch.Generator().manual_seed(0)
    K, kept, names = 9, 48, ("increment", "reward", "advantage")
    for epoch in (50, 100):
        tensors = {
            "images": torch.randint(0, 256, (kept, K + 1, 64, 64, 3), generator=noise).byte()
        }
        tensors |= {
            "ladder": torch.rand(1152, K + 1, generator=noise),
            "turning": torch.ones(1152, K).bool(),
        }
        tensors |= {name: torch.rand(1152, K, generator=noise) for name in names}
        save_ladders(run, epoch, tensors | {"group_id": torch.arange(1152) // 24})
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert 3e6 < len(html.encode()) < 10e6
    assert html.count('class="group"') == 2
    assert "more trajectories of this group are in the run's folder" in html


def test_evaluations_stand_where_training_had_come_to(tmp_path: Path) -> None:
    run = data.read(make(tmp_path / "run"))
    assert run.train["seconds"] == [10.0, 20.0, 30.0, 40.0]
    assert run.eval["seconds"] == [0.0, 40.0]
    assert run.seconds == 50.0
    assert run.eval["updates"] == [0.0, 8]
    assert run.eval["evaluations"] == [0.0, 192]


def test_figures_repeat_no_line_and_leave_out_what_is_zero(tmp_path: Path) -> None:
    runs = [data.read(make(tmp_path / "run"))]
    drawn = [(chart.section, chart.keys) for chart in charts.charts(runs)]
    assert drawn[:2] == [(charts.HELD_OUT, ("shapes/exact",)), (charts.HELD_OUT, ("total",))]
    assert drawn[2:4] == [(charts.TRAINING, ("reward",)), (charts.TRAINING, ("shapes/exact",))]
    health = [keys for section, keys in drawn if section == charts.HEALTH]
    assert health == [("clip_high", "clip_low"), ("group_std",), ("zero_std",), ("loss",)]
    assert charts.silent(runs) == ["KL to the frozen model", "Share of images without a score"]
    assert drawn[-1] == (charts.COST, ("seconds_rollout", "seconds_update"))


def test_a_metric_that_no_figure_knows_is_drawn_under_health(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=0)
    (run / "metrics.jsonl").write_text(json.dumps(train_line(1) | {"image_diversity": 0.5}))
    assert charts.Chart(
        charts.HEALTH, "image diversity", "train", ("image_diversity",)
    ) in charts.charts([data.read(run)])


def test_counts_are_told_by_phase_and_are_no_figures_of_health(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=0)
    counts = [
        {"evaluations_rollout": 48, "images_decode": 12, "evaluations_update": n}
        for n in (30, 24, 24)
    ]
    lines = [train_line(i + 1) | counts[i] | {"seconds_decode": 1.0} for i in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = data.read(run)
    assert {row["phase"]: (row["evaluations"], row["images"]) for row in charts.phases(read)} == {
        "rollout": (48, None),
        "update": (24, None),  # the median; the settings alone would give 12
        "decode": (None, 12),
    }
    known = {key for chart in charts.charts([read]) for key in chart.keys}
    assert not known & {"evaluations_rollout", "evaluations_update", "images_decode"}
    report.write(run, run / "report.html")
    assert "<td>1.00</td><td>9%</td><td>–</td><td>12</td>" in (run / "report.html").read_text()


def test_turning_points_are_averaged_over_spans_of_epochs(tmp_path: Path) -> None:
    turning = charts.turning_points(data.read(make(tmp_path / "run")), most=2)
    assert turning == {
        "steps": [2, 3],
        "spans": ["1–2", "3–4"],
        "shares": [[0.125, 0.125], [0.5, 0.5]],
    }


def test_the_cost_of_an_epoch_by_phase(tmp_path: Path) -> None:
    phases = {row["phase"]: row for row in charts.phases(data.read(make(tmp_path / "run")))}
    rollout = {
        "phase": "rollout",
        "seconds": 7.0,
        "evaluations": 48.0,
        "images": None,
        "share": 0.7,
    }
    assert phases["rollout"] == rollout
    assert (
        phases["update"]["evaluations"] == 2 * 3 * 2
    )  # prompts, images of each, steps; no KL, so once


def test_runs_differ_in_what_was_set_not_in_names(tmp_path: Path) -> None:
    runs = [data.read(make(tmp_path / "a")), data.read(make(tmp_path / "b", credit="terminal"))]
    assert data.differences([run.config for run in runs]) == {
        "credit.name": ["turning_point", "terminal"]
    }


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = data.read_all(
        [make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run"), make(tmp_path / "other")]
    )
    assert [run.name for run in runs] == ["x/run", "y/run", "other"]


def three_seeds(folder: Path) -> list[data.Run]:
    return [
        data.read(make(folder / str(seed), seed=seed, lift=lift))
        for seed, lift in ((1, 0.0), (2, 0.3), (3, 0.6))
    ]


def test_bands_span_the_seeds(tmp_path: Path) -> None:
    band = reference.make({"TP-GRPO": three_seeds(tmp_path)})["bands"][0]
    assert (band["label"], band["seeds"]) == ("TP-GRPO", [1, 2, 3])
    assert band["eval"]["updates"] == [0, 8]
    assert band["eval"]["total"] == {"mean": [0.25, 0.8], "low": [0.25, 0.5], "high": [0.25, 1.1]}
    assert band["train"]["reward"]["low"] == [0.5, 0.6, 0.7, 0.8]


def test_bands_are_of_one_setting_and_different_seeds(tmp_path: Path) -> None:
    runs = three_seeds(tmp_path)
    with pytest.raises(ValueError, match="the same seed twice"):
        reference.make({"TP-GRPO": [*runs, runs[0]]})
    other = data.read(make(tmp_path / "4", seed=4, epochs=5))
    with pytest.raises(ValueError, match=r"differ in more than the seed.*epochs"):
        reference.make({"TP-GRPO": [*runs, other]})


def test_a_run_is_compared_with_the_band_of_its_method_and_told_what_differs(
    tmp_path: Path,
) -> None:
    curves = reference.make({"TP-GRPO": three_seeds(tmp_path)})
    of = curves["bands"][0]
    for label, section, name in (
        ("Flow-GRPO", "credit", "terminal"),
        ("TP-GRPO, matching", "objective", "matching"),
    ):
        config = of["config"] | {section: {"name": name}}
        curves["bands"].append(of | {"label": label, "config": config})
    run = data.read(make(tmp_path / "own", seed=9, epochs=3))
    (band,) = reference.chosen(curves, [run])
    assert band["label"] == "TP-GRPO"
    assert band["run"] == 0
    assert band["differs"] == [{"run": "own", "field": "epochs", "reference": 4, "value": 3}]


def test_a_setting_that_the_reference_does_not_know_is_a_difference(tmp_path: Path) -> None:
    curves = {"name": "mine"} | reference.make({"TP-GRPO": three_seeds(tmp_path)})
    run = make(
        tmp_path / "own",
        credit="turning_point",
        sample=CONFIG["sample"] | {"completion": "tweedie"},
    )
    (band,) = reference.chosen(curves, [data.read(run)])
    assert band["differs"] == [
        {"run": "own", "field": "sample.completion", "reference": None, "value": "tweedie"}
    ]
    report.write(run, run / "report.html", against=curves)
    assert (
        "own has sample.completion = tweedie, the reference unknown."
        in (run / "report.html").read_text()
    )


def test_the_kept_reference_curves_know_every_setting_of_their_recipe() -> None:
    curves = reference.load("shapes_tiny")
    for band in curves["bands"]:
        recipe = "shapes_tiny" if band["label"] == "TP-GRPO, matching" else "paper"
        today = json.loads(tp_grpo.get_config(recipe).to_json_best_effort())
        for section in ("credit", "objective"):
            today[section]["name"] = band["config"][section]["name"]
        today["epochs"] = band["config"]["epochs"]
        other = data.differences([band["config"], today])
        assert set(other) == {"seed"}, (
            "a new field: give the bands the value that those runs were made with"
        )
        today["sample"]["completion"] = "tweedie"
        known = band["config"]["sample"]["completion"]
        assert data.differences([band["config"], today])["sample.completion"] == [known, "tweedie"]


def test_the_kept_reference_curves_are_of_three_seeds_and_unknown_ones_are_named() -> None:
    curves = reference.load("shapes_tiny")
    assert {
        band["label"]: (band["config"]["credit"]["name"], band["config"]["objective"]["name"])
        for band in curves["bands"]
    } == {
        "TP-GRPO": ("turning_point", "grpo"),
        "TP-GRPO, matching": ("turning_point", "matching"),
        "Flow-GRPO": ("terminal", "grpo"),
        "incremental": ("incremental", "grpo"),
    }
    assert all(len(band["seeds"]) >= 3 for band in curves["bands"])
    with pytest.raises(ValueError, match=r"no reference curves 'shapes_huge'.*known: shapes_tiny"):
        reference.load("shapes_huge")


def test_figures_are_written_as_png(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a"), make(tmp_path / "b", credit="terminal")]
    written = figures.save(
        runs, tmp_path / "png", axis="seconds", against=reference.load("shapes_tiny")
    )
    sections = ["held-out-prompts", "training-prompts", "health", "cost"]
    assert [path.stem for path in written] == [
        *sections,
        *(f"{kind}-{n}" for n in "ab" for kind in KINDS),
    ]
    assert all(Image.open(path).convert("L").getextrema() == (0, 255) for path in written)


KINDS = ("turning-points", "trajectories")


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """A script by its path, with arguments -> exit status, stdout, stderr."""

    def run(path: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        return int(left.value.code or 0), *capsys.readouterr()

    return run


def test_the_script_writes_page_and_figures(tmp_path: Path, program: Program) -> None:
    run = make(tmp_path / "run")
    done = program("scripts/report.py", run, "--against", "shapes_tiny", "--png", tmp_path / "png")
    assert done == (0, f"{run / 'report.html'}\n", "")
    assert "Reference <b>shapes_tiny</b>" in (run / "report.html").read_text()
    assert len(list((tmp_path / "png").glob("*.png"))) == 6
    status, _, complaint = program("scripts/report.py", tmp_path)
    assert status == 2
    assert "holds no run" in complaint


def test_the_curves_are_made_by_a_command(tmp_path: Path, program: Program) -> None:
    runs = [make(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    path = tmp_path / "mine.json"
    command = [
        "benchmarks/reference_curves.py",
        "mine",
        "--folder",
        tmp_path,
        "--runs",
        "Mine",
        *runs,
    ]
    assert program(*command) == (0, f"{path}\n", "")
    bands = reference.load(str(path))["bands"]
    assert bands[0]["seeds"] == [1, 2]
    assert bands[0]["eval"]["total"]["mean"] == [0.25, eval_line(4, 0.5)["total"]]
