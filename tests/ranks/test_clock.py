"""Where an epoch goes: every second has one phase, and a real epoch's counts are the plan's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tp_grpo.ranks import clock
from tp_grpo.store import checkpoint
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


class Time:
    """A clock's seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_every_second_belongs_to_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    timer = clock.Clock()
    time.now += 1
    with timer.phase("rollout"):
        time.now += 2
        for _ in range(2):
            with timer.phase("decode"):
                time.now += 4
            time.now += 8
    time.now += 16
    timer.count("images", 3)
    timer.count("images", 4)
    lap = {
        "seconds": 43.0,
        "seconds_other": 17.0,
        "seconds_rollout": 18.0,
        "seconds_decode": 8.0,
        "images": 7,
    }
    assert timer.lap() == lap
    assert timer.lap() == {"seconds": 0.0, "seconds_other": 0.0}


def test_a_phase_that_fails_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    timer = clock.Clock()
    with pytest.raises(KeyError), timer.phase("update"):
        time.now += 1
        raise KeyError
    time.now += 2
    assert timer.lap() == {"seconds": 3.0, "seconds_other": 2.0, "seconds_update": 1.0}


def test_the_device_is_waited_for_where_phases_meet_and_ranks_are_added_up() -> None:
    waits: list[None] = []
    timer = clock.Clock(
        lambda: waits.append(None), lambda counts: {name: 2 * n for name, n in counts.items()}
    )
    with timer.phase("update"):
        timer.count("rows", 5)
    assert timer.lap()["rows"] == 10
    assert len(waits) == 3


def lines(config: ConfigDict) -> list[dict[str, Any]]:
    text = (Path(config.output_dir) / config.run_name / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]


def test_an_epoch_tells_its_phases_evaluations_and_images(smoke: Smoke) -> None:
    config = smoke(train__beta=1e-2, sample__completion="reuse")
    trainer = Trainer(config)
    trainer.run()
    plan = trainer.plan
    for line in lines(config):
        phases = {name for name in line if name.startswith("seconds_")}
        assert phases >= {
            f"seconds_{name}" for name in ("rollout", "decode", "score_wait", "update", "other")
        }
        assert sum(line[name] for name in phases) == pytest.approx(line["seconds"])
        assert line["evaluations_rollout"] == plan.epoch_nfe == 8 * 6
        assert line["images_decode"] == plan.epoch_images == 8 * 3
        assert line["evaluations_update"] == 8 * 2 * 2, (
            "the policy and the frozen model, at both steps"
        )
    assert "seconds_checkpoint" in lines(config)[1], "that of the epoch before"


def test_the_next_prompts_are_encoded_beside_the_update_and_nothing_changes(smoke: Smoke) -> None:
    beside, before = smoke(run_name="beside"), smoke(run_name="before")
    threads: dict[str, list[str]] = {}
    for config in (beside, before):
        trainer = Trainer(config)
        trainer.conditions.ahead = config is beside
        encode, names = trainer.backbone.encode, threads.setdefault(config.run_name, [])

        def noted(prompts: list[str], encode: Any = encode, names: list[str] = names) -> Any:
            names.append(threading.current_thread().name)
            return encode(prompts)

        trainer.backbone.encode = noted  # type: ignore[method-assign]
        trainer.run()
    main = threading.current_thread().name
    # The evaluation of the base, epoch 1, an evaluation, epoch 2, an evaluation.
    assert threads["before"] == [main] * 5
    assert threads["beside"] == [main, main, "encode_0", main, main]
    first, second = (
        load_file(Path(c.output_dir) / c.run_name / "checkpoints" / "epoch-2" / checkpoint.WEIGHTS)
        for c in (beside, before)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_the_encoder_raises_beside_the_update_is_raised(smoke: Smoke) -> None:
    trainer = Trainer(smoke())
    encode = trainer.backbone.encode

    def fails(prompts: list[str]) -> Any:
        if threading.current_thread().name.startswith("encode"):
            raise OSError("the disk is gone")
        return encode(prompts)

    trainer.backbone.encode = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.run()
