"""Checkpoints are written beside the next epoch: as they were handed over, and never lost or passed over in silence."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tp_grpo.ranks.preemption import Preempted
from tp_grpo.store import checkpoint, files
from tp_grpo.store.checkpoint import Checkpoint, Checkpoints
from tp_grpo.store.files import NoRoomError
from tp_grpo.train.update import RatioError
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
SAVE = Checkpoints.save


def folder(config: ConfigDict) -> Path:
    return Path(config.output_dir) / config.run_name


def tensors(value: Any) -> list[torch.Tensor]:
    return list(checkpoint._tensors(value))


@pytest.mark.parametrize("rank", [4, 0])
def test_it_is_written_on_a_thread_as_it_was_when_training_went_on(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    fields = {
        "lora__rank": rank,
        "train__learning_rate": 1e-2,
        "eval__every": 2,
        "checkpoint__keep": 5,
    }
    short = smoke(run_name="short", epochs=1, **fields)
    Trainer(short).run()

    trained, names = threading.Event(), []

    def late(self: Checkpoints, made: Checkpoint, export: Callable[[Path], None]) -> Path:
        names.append(threading.current_thread().name)
        assert made.epoch == 2 or trained.wait(60), (
            "the second epoch does not wait for the first one's checkpoint"
        )
        return SAVE(self, made, export)

    monkeypatch.setattr(Checkpoints, "save", late)
    trainer = Trainer(long := smoke(run_name="long", epochs=2, **fields))
    update = trainer._update

    def then_write(epoch: int, *arguments: Any) -> dict[str, float]:
        report = update(epoch, *arguments)
        if epoch == 2:
            trained.set()
        return report

    trainer._update = then_write  # type: ignore[method-assign]
    trainer.run()
    assert names == ["checkpoint_0"] * 2
    first, second, alone = (
        checkpoint.load(folder(config) / f"checkpoints/epoch-{epoch}")
        for config, epoch in ((long, 1), (long, 2), (short, 1))
    )
    for own, other in ((first.weights, alone.weights), (first.state, alone.state)):
        assert all(torch.equal(a, b) for a, b in zip(tensors(own), tensors(other), strict=True))
    assert first.state["updates"] == alone.state["updates"] < second.state["updates"]
    assert any(not torch.equal(a, second.weights[name]) for name, a in first.weights.items())
    adapters = [
        sorted((folder(c) / "checkpoints/epoch-1/adapter").rglob("*.safetensors"))
        for c in (long, short)
    ]
    assert adapters[0] and len(adapters[0]) == len(adapters[1])
    for ours, theirs in zip(*adapters, strict=True):
        exported, expected = load_file(ours), load_file(theirs)
        assert all(torch.equal(exported[name], value) for name, value in expected.items())


def fails(*epochs: int, error: BaseException | None = None) -> Callable[..., Path]:
    """`Checkpoints.save`, which finds no room for the checkpoints of these epochs."""

    def save(self: Checkpoints, made: Checkpoint, export: Callable[[Path], None]) -> Path:
        if made.epoch in epochs:
            raise error or files._no_room(self.folder, 7, 5)
        return SAVE(self, made, export)

    return save


def test_no_room_while_it_is_written_is_made_up_for_by_the_next_one(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2))
    trainer = Trainer(smoke(epochs=4, eval__every=4))
    trainer.run()
    assert trainer.checkpoints.epochs() == [1, 3, 4]
    assert "the checkpoint before epoch 3's was not written: " in capsys.readouterr().out


def test_no_room_twice_while_it_is_written_stops_the_run(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2, 3))
    trainer = Trainer(smoke(epochs=9, eval__every=9))
    with pytest.raises(NoRoomError, match="the disk is full: about 7 bytes"):
        trainer.run()
    assert trainer.checkpoints.epochs() == [1] and trainer.learner.updates == 2 * 3


def test_no_room_before_it_is_written_stops_the_run_at_once(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def full(path: Path) -> Any:
        return usage(path)._replace(free=1000 if Path(path).name == "checkpoints" else 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", full)
    trainer = Trainer(smoke(epochs=4, eval__every=4))
    with pytest.raises(NoRoomError, match="1,000 were free for"):
        trainer.run()
    assert trainer.checkpoints.epochs() == [] and trainer.learner.updates == 2


@pytest.mark.parametrize(
    "why", [Preempted("SIGTERM: stopped after the epoch"), KeyboardInterrupt()]
)
def test_a_run_that_is_stopped_has_its_checkpoint_on_the_disk(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, why: BaseException
) -> None:
    stopped = threading.Event()

    def slow(self: Checkpoints, made: Checkpoint, export: Callable[[Path], None]) -> Path:
        assert stopped.wait(60)
        return SAVE(self, made, export)

    monkeypatch.setattr(Checkpoints, "save", slow)
    trainer = Trainer(smoke(epochs=3, eval__every=3))

    def stop() -> None:
        stopped.set()
        raise why

    monkeypatch.setattr(trainer.preemption, "between_epochs", stop)
    with pytest.raises(type(why)):
        trainer.run()
    assert trainer.checkpoints.epochs() == [1]


@pytest.mark.parametrize("why", [KeyboardInterrupt(), RatioError("the ratio differs from 1")])
@pytest.mark.parametrize("error", [None, RuntimeError("lora_A did not survive saving")])
def test_a_run_that_ends_by_an_error_says_what_was_not_written(
    smoke: Smoke,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: BaseException,
    error: BaseException | None,
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(1, error=error))
    trainer = Trainer(smoke(epochs=3, eval__every=3))

    def stop() -> None:
        raise why

    together: list[Any] = []
    on_main = trainer.runtime.on_main
    monkeypatch.setattr(
        trainer.runtime, "on_main", lambda work: (together.append(work), on_main(work))
    )
    monkeypatch.setattr(trainer.preemption, "between_epochs", stop)
    with pytest.raises(type(why)):
        trainer.run()
    assert (trainer.run_folder.close in together) == isinstance(why, RatioError), (
        "what all raise, all wait for"
    )
    said = capsys.readouterr().out
    assert (
        "the last checkpoint was not written: " in said and str(error or "the disk is full") in said
    )


def test_what_is_no_matter_of_the_disk_stops_the_run_at_the_end(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Checkpoints, "save", fails(2, error=RuntimeError("lora_A did not survive saving"))
    )
    with pytest.raises(RuntimeError, match="lora_A did not survive"):
        Trainer(smoke(epochs=2)).run()


def test_a_stop_says_that_there_was_no_room_for_the_checkpoint_it_relies_on(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2))
    trainer = Trainer(smoke(epochs=3, eval__every=3))

    def stop() -> None:
        if trainer.learner.updates == 2 * 2:
            raise Preempted("SIGTERM: stopped after the epoch")

    monkeypatch.setattr(trainer.preemption, "between_epochs", stop)
    with pytest.raises(NoRoomError):
        trainer.run()
    assert trainer.checkpoints.epochs() == [1]
