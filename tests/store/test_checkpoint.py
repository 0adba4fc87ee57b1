"""Checkpoints: whole or not used; what may change on resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tp_grpo.store.checkpoint import ADAPTER, META, STATE, WEIGHTS, Checkpoint, Checkpoints, load


def export(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights").write_bytes(b"an adapter")


def saved(folder: Path, *epochs: int, keep_every: int = 10) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep_every)
    for epoch in epochs:
        state = {"optimizer": {"step": torch.tensor(float(epoch))}, "updates": epoch}
        checkpoints.save(
            Checkpoint(epoch, {"a": torch.full((3,), float(epoch))}, state, {"seed": 1}), export
        )
    return checkpoints


def test_the_two_newest_and_every_tenth_stay(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, *range(1, 13))
    assert checkpoints.epochs() == [10, 11, 12]
    newest = checkpoints.newest()
    assert (
        newest
        and newest.epoch == 12
        and newest.state["updates"] == 12
        and newest.weights["a"][0] == 12
    )
    assert not list(tmp_path.glob(".draft*"))


@pytest.mark.parametrize("name", [WEIGHTS, STATE, META, f"{ADAPTER}/weights"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_used(
    tmp_path: Path, name: str, harm: str
) -> None:
    checkpoints = saved(tmp_path, 10, 11)
    path = tmp_path / "epoch-11" / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        path.write_bytes({"truncate": content[:middle], "flip": flipped, "empty": b""}[harm])
    with pytest.raises(ValueError, match=r"epoch-11.*(damaged|missing|no state.json)"):
        load(tmp_path / "epoch-11")
    with pytest.warns(UserWarning, match="trying the one before it"):
        newest = checkpoints.newest()
    assert newest and newest.epoch == 10


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "epoch-1" / WEIGHTS).write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"),
    ):
        checkpoints.newest()


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 11, 12)
    checkpoints.forget_after(11)
    assert checkpoints.epochs() == [10, 11]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", 1).newest() is None
