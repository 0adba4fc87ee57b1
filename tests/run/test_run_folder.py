"""Checkpoints are written during the next epoch, unchanged by it, and never lost silently."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tests.faults.runs import SHORT
from tests.run.one_rank import Learner, open_folder
from tp_grpo.ranks.preemption import Preempted
from tp_grpo.run.run_folder import RunFolder
from tp_grpo.store import checkpoint, files
from tp_grpo.store.checkpoint import Checkpoint, Checkpoints
from tp_grpo.store.files import NoRoomError
from tp_grpo.train.update import RatioError
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
Export = Callable[[Path], None]
SAVE = Checkpoints.save
LOST = RuntimeError("lora_A did not survive saving")


def tensors(value: Any) -> list[torch.Tensor]:
    return list(checkpoint._tensors(value))


@pytest.mark.parametrize("rank", [4, 0])
def test_it_is_written_on_a_thread_as_it_was_when_training_continued(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    fields = {"lora__rank": rank, "train__learning_rate": 1e-2, "checkpoint__keep": 5}
    short, long = (smoke(run_name=name, **fields) for name in ("short", "long"))
    for config, epochs in ((short, 1), (long, 2)):
        config.update_from_flattened_dict({**SHORT, "epochs": epochs})
    Trainer(short).run()
    trained, names = threading.Event(), []

    def late(self: Checkpoints, snapshot: Checkpoint, export: Export) -> None:
        names.append(threading.current_thread().name)
        assert snapshot.epoch == 2 or trained.wait(60), "the second epoch waits for the first's"
        SAVE(self, snapshot, export)

    monkeypatch.setattr(Checkpoints, "save", late)
    trainer = Trainer(long)
    update = trainer._update

    def then_write(epoch: int, *arguments: Any) -> dict[str, float]:
        report = update(epoch, *arguments)
        if epoch == 2:
            trained.set()
        return report

    trainer._update = then_write  # type: ignore[method-assign]
    trainer.run()
    assert names == ["checkpoint_0"] * 2

    saved = Path(short.output_dir)
    first, second, alone = (
        checkpoint.load(saved / name)
        for name in (
            "long/checkpoints/epoch-1",
            "long/checkpoints/epoch-2",
            "short/checkpoints/epoch-1",
        )
    )
    for ours, theirs in ((first.weights, alone.weights), (first.state, alone.state)):
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)  # unknown spreads
    assert first.state["updates"] == alone.state["updates"] < second.state["updates"]
    assert any(not torch.equal(a, second.weights[name]) for name, a in first.weights.items())
    adapters = [
        sorted((saved / name / "checkpoints/epoch-1/adapter").rglob("*.safetensors"))
        for name in ("long", "short")
    ]
    assert adapters[0]
    for ours, theirs in zip(*adapters, strict=True):
        exported, expected = load_file(ours), load_file(theirs)
        assert all(torch.equal(exported[name], value) for name, value in expected.items())


def fails(*epochs: int, error: BaseException | None = None) -> Callable[..., None]:
    """`Checkpoints.save` that finds no room for the checkpoints of these epochs."""

    def save(self: Checkpoints, snapshot: Checkpoint, export: Export) -> None:
        if snapshot.epoch in epochs:
            raise error or files._no_room(self.folder, 7, 5)
        SAVE(self, snapshot, export)

    return save


@pytest.fixture
def folder(smoke: Smoke) -> RunFolder:
    return open_folder(smoke(checkpoint__keep=9))


def save(folder: RunFolder, epoch: int) -> None:
    learner: Any = Learner()
    folder.save(learner, epoch, {}, "")


def printed(folder: RunFolder) -> list[str]:
    return folder.runtime.lines  # type: ignore[attr-defined, no-any-return]


def test_no_room_during_the_writing_is_made_up_for_by_the_next_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2))
    for epoch in range(1, 5):
        save(folder, epoch)
    folder.settle()
    assert folder.checkpoints.epochs() == [1, 3, 4]
    (words,) = printed(folder)
    assert words.startswith("the checkpoint before epoch 3's was not written: NoRoomError")


def test_no_room_twice_during_the_writing_is_an_error(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2, 3))
    save(folder, 1)
    save(folder, 2)
    with pytest.raises(NoRoomError, match="the disk is full: about 7 bytes"):
        save(folder, 3)
    assert folder.checkpoints.epochs() == [1]


def test_no_room_before_the_writing_is_an_error_at_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def full(path: Path) -> Any:
        return usage(path)._replace(free=10 if Path(path).name == "checkpoints" else 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(NoRoomError, match="10 were free for"):
        save(folder, 1)
    assert folder.checkpoints.epochs() == []


def test_an_error_that_is_not_the_disk_s_is_raised_where_the_run_waits_for_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2, error=LOST))
    save(folder, 1)
    save(folder, 2)
    learner: Any = Learner()
    with pytest.raises(RuntimeError, match="lora_A did not survive"):
        folder.finish(learner)


def run(folder: RunFolder, train: Callable[[], None]) -> None:
    """`Trainer.run` with that training."""
    trainer: Any = SimpleNamespace(
        runtime=folder.runtime,
        preemption=folder.preemption,
        run_folder=folder,
        _train=train,
        _finish=lambda: pytest.fail("it was not stopped"),
    )
    Trainer.run(trainer)


@pytest.mark.parametrize(
    "why", [Preempted("SIGTERM: stopped after the epoch"), KeyboardInterrupt(), RatioError("1.1")]
)
def test_a_run_that_is_stopped_has_its_checkpoint_on_the_disk(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, why: BaseException
) -> None:
    stopped = threading.Event()

    def slow(self: Checkpoints, snapshot: Checkpoint, export: Export) -> None:
        assert stopped.wait(60)
        SAVE(self, snapshot, export)

    def train() -> None:
        save(folder, 1)
        stopped.set()
        raise why

    monkeypatch.setattr(Checkpoints, "save", slow)
    with pytest.raises(type(why)):
        run(folder, train)
    assert folder.checkpoints.epochs() == [1]


@pytest.mark.parametrize("why", [KeyboardInterrupt(), RatioError("the ratio differs from 1")])
@pytest.mark.parametrize("error, words", [(None, "the disk is full"), (LOST, "did not survive")])
def test_a_run_that_ends_by_an_error_says_what_was_not_written(
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    why: BaseException,
    error: BaseException | None,
    words: str,
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(1, error=error))

    def train() -> None:
        save(folder, 1)
        raise why

    with pytest.raises(type(why)):
        run(folder, train)
    assert printed(folder)[-1].startswith("the last checkpoint was not written: ")
    assert words in printed(folder)[-1]


@pytest.mark.parametrize("why, waited", [(KeyboardInterrupt(), False), (RatioError("1.1"), True)])
def test_what_all_ranks_raise_all_ranks_wait_for(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, why: BaseException, waited: bool
) -> None:
    together: list[Any] = []
    monkeypatch.setattr(folder.runtime, "on_main", together.append)

    def train() -> None:
        raise why

    with pytest.raises(type(why)):
        run(folder, train)
    assert (folder.close in together) == waited


def test_a_stop_says_that_there_was_no_room_for_the_checkpoint_it_relies_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "save", fails(2))

    def train() -> None:
        save(folder, 1)
        save(folder, 2)
        raise Preempted("SIGTERM: stopped after the epoch")

    with pytest.raises(NoRoomError):
        run(folder, train)
    assert folder.checkpoints.epochs() == [1]


@pytest.mark.parametrize("resume, again", [("auto", ""), ("never", "=auto")])
def test_an_ending_says_which_epoch_is_safe_and_how_to_resume(
    smoke: Smoke, resume: str, again: str
) -> None:
    folder = open_folder(smoke(checkpoint__resume=resume))
    again = again and f" with --config.checkpoint.resume{again}"
    assert folder.how_to_resume() == (
        f"no epoch was finished yet; the same command{again} resumes from there."
    )
    save(folder, 1)
    folder.settle()
    safe = f"everything up to epoch 1 is in {folder.folder}"
    assert folder.how_to_resume() == f"{safe}; the same command{again} resumes from there."


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "ladders"])
def test_a_folder_of_the_run_that_cannot_be_written_is_found_before_it_resumes(
    smoke: Smoke, name: str
) -> None:
    config = smoke()
    folder = Path(config.output_dir) / config.run_name
    folder.mkdir()
    (folder / name).symlink_to("/proc")
    with pytest.raises(ValueError, match=f"output_dir: {folder}/{name} cannot be written"):
        open_folder(config)
