"""Checkpoints: whole or not used; what may change on resume."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch

from tp_grpo.store import checkpoint
from tp_grpo.store.checkpoint import (
    ADAPTER,
    BEST,
    META,
    STATE,
    WEIGHTS,
    Checkpoint,
    Checkpoints,
    UnreadableError,
    load,
)


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
    assert newest
    assert newest.epoch == newest.state["updates"] == newest.weights["a"][0] == 12
    assert not list(tmp_path.glob(".draft*"))


def test_a_checkpoint_that_was_moved_and_linked_loses_its_link_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "run", 1)
    moved = tmp_path / "disk"
    shutil.move(checkpoints.path(1), moved)
    checkpoints.path(1).symlink_to(moved)
    saved(tmp_path / "run", 2, 3)
    assert checkpoints.epochs() == [2, 3] and (moved / META).is_file()
    assert not checkpoints.path(1).is_symlink()


def test_a_folder_of_ones_own_called_best_is_kept_under_another_name(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / BEST).mkdir()
    (tmp_path / BEST / "mine.txt").write_text("notes")
    with pytest.warns(UserWarning, match="is no link to the best checkpoint; it is now .*-other-1"):
        checkpoints.tidy()
    assert (tmp_path / f"{BEST}-other-1/mine.txt").read_text() == "notes"


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


def test_a_copy_that_followed_the_link_to_the_best_goes_on(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "run", 1)
    checkpoints.best_by = "total"
    checkpoints.add_scores(1, {"total": 0.5})
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # as `cp -rL`, zip and s3 do
    copy = Checkpoints(tmp_path / "copy", 10, best="total")
    assert not (copy.folder / BEST).is_symlink()
    copy.add_scores(1, {"total": 0.6})
    assert (copy.folder / BEST).is_symlink() and copy.best() == 1
    copy.best_by = ""
    (copy.folder / BEST).unlink()
    (copy.folder / BEST).mkdir()
    copy.tidy()
    assert not (copy.folder / BEST).exists()


@pytest.mark.parametrize(
    "name", ["epoch-2.tar.gz", "epoch-1-backup", "epoch-", "epoch-3 (copy)", "epoch-03"]
)
def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path, name: str) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / name).mkdir()
    (tmp_path / "epoch-7").write_text("a file")
    newest = checkpoints.newest()
    assert checkpoints.epochs() == [1] and newest and newest.epoch == 1
    checkpoints.forget_after(0)
    assert (tmp_path / name).is_dir()


def test_a_copy_under_another_epochs_name_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    for name in ("epoch-0100", "epoch-200"):
        shutil.copytree(tmp_path / "epoch-2", tmp_path / name)
    (tmp_path / "epoch-300").mkdir()
    (tmp_path / "epoch-300" / "note.txt").write_text("mine")
    newest = checkpoints.newest()
    assert checkpoints.epochs() == [1, 2] and newest and newest.epoch == 2
    checkpoints.keep = 1
    saved(tmp_path, 3)
    checkpoints.tidy()
    assert checkpoints.epochs() == [3]
    checkpoints.forget_after(0)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["epoch-0100", "epoch-200", "epoch-300"]
    assert (tmp_path / "epoch-300" / "note.txt").read_text() == "mine"


def test_a_folder_in_the_place_of_a_checkpoint_is_kept_under_another_name(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "epoch-3").mkdir()
        (tmp_path / "epoch-3" / "note.txt").write_text("mine")
        with pytest.warns(
            UserWarning, match=r"no checkpoint of epoch 3; it is now .*epoch-3-other"
        ):
            checkpoints = saved(tmp_path, 3)
        assert checkpoints.epochs() == [3]
        checkpoints.forget_after(2)
    for number in (1, 2):
        assert (tmp_path / f"epoch-3-other-{number}" / "note.txt").read_text() == "mine"


def test_every_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    plain = tmp_path / "plain"
    plain.write_text("")
    written = [path for path in (tmp_path / "epoch-1").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in written} == {plain.stat().st_mode}


def test_a_checkpoint_that_may_not_be_read_stops_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1, 2)

    def refuse(path: Path) -> dict:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "load_file", refuse)
    with pytest.raises(UnreadableError, match=r"epoch-2 cannot be read: .*Permission denied"):
        checkpoints.newest()


def test_a_run_in_the_place_of_a_checkpoint_is_told_what_it_holds(tmp_path: Path) -> None:
    saved(tmp_path / "run" / "checkpoints", 1, 2)
    held = ", ".join(str(tmp_path / "run" / "checkpoints" / f"epoch-{n}") for n in (1, 2))
    with pytest.raises(ValueError, match=f"no state.json; name one of those inside: {held}"):
        load(tmp_path / "run")
