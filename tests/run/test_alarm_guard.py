"""Alarms in a run: printed once, ending it, rolling back; and a run that starts from there."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tests.run.one_rank import OneRank
from tp_grpo.observe import alarms
from tp_grpo.run.alarm_guard import AlarmGuard
from tp_grpo.store import checkpoint, files
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
SILENT = {"zero_std": 1.0}


def guarded(
    folder: Path, how: str, smoke: Smoke, saved: Sequence[int] = ()
) -> tuple[AlarmGuard, OneRank]:
    """The guard of a run whose checkpoints hold the number of their epoch as a policy."""
    runtime, kept = OneRank(), folder / "checkpoints"
    for epoch in saved:
        (kept / f"epoch-{epoch}" / checkpoint.ADAPTER).mkdir(parents=True)
        (kept / f"epoch-{epoch}" / checkpoint.ADAPTER / "weights").write_text(str(epoch))
    config = smoke(tracking__alarms=how)
    (folder / "config.yaml").write_text(config.to_json_best_effort())  # JSON is YAML
    there = SimpleNamespace(path=lambda n: kept / f"epoch-{n}", epochs=lambda: list(saved))
    run_folder: Any = SimpleNamespace(checkpoints=there, settle=lambda: None)
    return AlarmGuard(runtime, folder, run_folder, config), runtime  # type: ignore[arg-type]


def record(folder: Path, kind: str, epoch: int, **values: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "epoch": epoch, **values}) + "\n")


def test_warn_says_an_alarm_once(tmp_path: Path, smoke: Smoke) -> None:
    guard, runtime = guarded(tmp_path, "warn", smoke)
    for epoch in range(1, 9):
        record(tmp_path, "train", epoch, **SILENT)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"note": "of my own"}\n{"kind": "mine", "epoch": 0}\n')
        guard.check()
    (line,) = runtime.lines
    assert line.startswith("alarm after epoch 5, zero std: 100% of the groups' steps")
    assert "To do:" in line


def test_stop_ends_the_run_and_off_does_not_look(tmp_path: Path, smoke: Smoke) -> None:
    for epoch in range(1, 9):
        record(tmp_path, "train", epoch, **SILENT)
    guarded(tmp_path, "off", smoke)[0].check()
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(
        alarms.Alarmed, match=r"alarm after epoch 8, zero std(.|\n)*did: .*report\.html$"
    ):
        guarded(tmp_path, "stop", smoke)[0].check()
    html = (tmp_path / "report.html").read_text()
    assert (
        "active alarms" in html
        and "<b>zero std</b>, after epoch 8: 100% of the groups&#39; steps" in html
    )


def test_a_run_is_ended_by_its_alarm_where_no_report_can_be_written(
    tmp_path: Path, smoke: Smoke
) -> None:
    for epoch in range(1, 9):
        record(tmp_path, "train", epoch, **SILENT)
    guard, _ = guarded(tmp_path, "stop", smoke)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(
        alarms.Alarmed, match=r"zero std(.|\n)*No report was written: .*config\.yaml"
    ):
        guard.check()


def collapsing(folder: Path, totals: Mapping[int, float]) -> None:
    """Records of eight epochs with an alarm from the fifth on, and evaluations by epoch."""
    for epoch in range(9):
        if epoch:
            record(folder, "train", epoch, **SILENT)
        if epoch in totals:
            record(folder, "eval", epoch, total=totals[epoch], total_se=0.1)


def test_rollback_exports_the_best_policy_without_an_alarm_and_says_the_command(
    tmp_path: Path, smoke: Smoke
) -> None:
    guard, _ = guarded(tmp_path, "rollback", smoke, saved=(2, 4, 6, 8))
    collapsing(tmp_path, {0: 0.1, 2: 0.3, 4: 0.4, 6: 0.6, 8: 0.5})
    with pytest.raises(alarms.Alarmed, match="holds the policy of epoch 4") as stopped:
        guard.check()
    assert (tmp_path / "adapter" / "weights").read_text() == "4", (
        "6 was better, and raised the alarm"
    )
    assert (
        f"--config.checkpoint.resume={tmp_path}/checkpoints/epoch-4 --config.run_name=NAME"
        in str(stopped.value)
    )
    assert "deleted" not in str(stopped.value)


def test_an_alarm_is_an_alarm_on_a_full_disk(
    tmp_path: Path, smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, _ = guarded(tmp_path, "rollback", smoke, saved=(2, 4, 6, 8))
    collapsing(tmp_path, {0: 0.1, 2: 0.3, 4: 0.4, 6: 0.6, 8: 0.5})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    guard.run_folder.settle = full  # type: ignore[method-assign]
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(
        alarms.Alarmed, match=r"The last checkpoint was not written: .*No space left"
    ) as stopped:
        guard.check()
    assert f"{tmp_path}/checkpoints/epoch-4/adapter holds the policy of epoch 4" in str(
        stopped.value
    )
    assert not (tmp_path / "adapter").exists()


def test_rollback_says_how_to_get_a_better_checkpoint_that_was_removed(
    tmp_path: Path, smoke: Smoke
) -> None:
    guard, _ = guarded(tmp_path, "rollback", smoke, saved=(4, 6, 8))
    guard.config.eval.every = 2
    collapsing(tmp_path, {0: 0.1, 2: 0.9, 4: 0.4, 6: 0.6, 8: 0.5})
    with pytest.raises(alarms.Alarmed, match="holds the policy of epoch 4") as stopped:
        guard.check()
    message = str(stopped.value)
    assert (
        "checkpoint of epoch 2, evaluated as better without an alarm (total 0.9), was deleted"
        in message
    )
    assert "--config.run_name=NAME --config.epochs=2 makes it again" in message
    assert "--config.checkpoint.keep_every=2 keeps" in message


@pytest.mark.parametrize(
    "totals, advice",
    [
        ({}, "a lower --config.eval.every may find"),
        ({0: 0.5, 6: 0.9}, "No evaluation without an alarm was better than the base model's"),
        ({0: 0.5, 3: 0.9}, "The checkpoint of epoch 3(.|\\n)*--config.epochs=3 makes it again"),
    ],
)
def test_rollback_without_a_good_checkpoint_exports_nothing_and_says_what_to_do(
    tmp_path: Path, smoke: Smoke, totals: Mapping[int, float], advice: str
) -> None:
    guard, _ = guarded(tmp_path, "rollback", smoke, saved=(4, 6))
    collapsing(tmp_path, totals)
    with pytest.raises(alarms.Alarmed, match=f"No checkpoint to return to. (.|\\n)*{advice}"):
        guard.check()
    assert not (tmp_path / "adapter").exists()


def test_a_run_logs_what_alarms_need_stops_by_them_and_another_begins_there(smoke: Smoke) -> None:
    """A scorer gives every image the same, which an alarm sees at the fifth epoch."""
    same = {
        "epochs": 9,
        "eval__every": 4,
        "tracking__images_every": 9,
        "tracking__alarms": "rollback",
    }
    config = smoke("flow_grpo", run_name="flat", **same)
    with config.unlocked():
        config.rewards.scorers = ConfigDict(
            {"tests.scorers:Flat": 1.0, "tests.scorers:Brightness": 0.0}, allow_dotted_keys=True
        )
    folder = Path(config.output_dir) / "flat"
    with pytest.raises(
        alarms.Alarmed, match=r"epoch 5, zero std(.|\n)*holds the policy of epoch 4"
    ):
        Trainer(config).run()
    lines = files.read_lines(folder / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["epoch"] for line in trained] == [1, 2, 3, 4, 5]
    names = (
        "diversity",
        "high_frequency",
        "kl",
        "clip_high",
        "clip_low",
        "ratio_dev",
        "failed",
        "zero_std",
    )
    assert all(0 <= line[name] <= 1 for line in trained for name in names)
    assert all(line["diversity"] > 0.01 and line["high_frequency"] > 0.001 for line in trained)
    # Asked in evaluations alone, and no part of the total.
    held_out = [line for line in lines if line["kind"] == "eval"]
    assert all(
        line["tests.scorers:Brightness"] != line["total"] == line["tests.scorers:Flat"]
        for line in held_out
    )

    begun = smoke("flow_grpo", run_name="again", epochs=5, eval__every=5, train__learning_rate=1e-5)
    begun.checkpoint.resume = str(folder / "checkpoints" / "epoch-4")
    trainer = Trainer(begun)
    trainer.run()
    assert trainer.learner.optimizer.param_groups[0]["lr"] == 1e-5
    after = files.read_lines(folder.parent / "again" / "metrics.jsonl")
    assert [(line["kind"], line["epoch"]) for line in after if line["kind"] != "update"] == [
        ("eval", 0),
        ("train", 5),
        ("eval", 5),
    ]
    before = load_file(folder / "checkpoints" / "epoch-4" / checkpoint.WEIGHTS)
    moved = load_file(folder.parent / "again" / "checkpoints" / "epoch-5" / checkpoint.WEIGHTS)
    largest = max((moved[name] - before[name]).abs().max().item() for name in before)
    # AdamW moves a weight by about its learning rate an update; there were two.
    assert 0 < largest < 1e-4
