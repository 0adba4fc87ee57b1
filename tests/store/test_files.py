"""Whole or not there; lines that were cut; a file held by one process."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tp_grpo.store import files

HOLD = (
    "import sys; from pathlib import Path; from tp_grpo.store import files; "
    "lock = files.hold(Path(sys.argv[1]))"
)


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_was_there_stays_when_writing_fails(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "kept"

    def write(text: str, error: BaseException | None = None) -> None:
        with files.whole(path) as draft:
            if as_folder:
                draft.mkdir()
            (draft / "part" if as_folder else draft).write_text(text)
            if error:
                raise error

    write("first")
    for error in (ValueError("halfway"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write("second", error)
        assert (path / "part" if as_folder else path).read_text() == "first"
    write("third")
    assert (path / "part" if as_folder else path).read_text() == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"], "no drafts are left"


def test_more_than_there_is_room_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(
            files.NoRoomError,
            match=r"about 1,152,921,504,606,846,976 bytes were needed and [\d,]+ were free",
        ),
        files.whole(tmp_path / "big", needed=1 << 60),
    ):
        pytest.fail("it began")
    assert not list(tmp_path.iterdir())


def test_cut_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    files.append_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2\n[3]\n\xff\xfe\n')
    files.append_line(path, {"a": 4})
    assert files.read_lines(path) == [{"a": 1}, {"a": 4}]


def test_a_file_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    command = [
        sys.executable,
        "-c",
        f"{HOLD}; print('held', flush=True); sys.stdin.read()",
        str(path),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"run is in use by process {holder.pid} on "):
            files.hold(path)
        holder.kill()
    files.hold(path).close()


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    kept = tmp_path / "run" / "checkpoints" / "weights"
    kept.parent.mkdir(parents=True)
    kept.write_text("weeks of work")
    with pytest.raises(IsADirectoryError) as error, files.whole(tmp_path / "run") as draft:
        draft.write_text("a page")
    assert error.value.filename == str(tmp_path / "run")
    assert kept.read_text() == "weeks of work"
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "no draft is left"


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.EACCES, PermissionError, "Permission denied"),
        (errno.EROFS, OSError, "Read-only file system"),
        (errno.EDQUOT, files.NoRoomError, "the disk is full"),
        (errno.ENOSPC, files.NoRoomError, "the disk is full"),
    ],
)
def test_what_safetensors_says_of_the_disk_is_an_error_of_the_file(
    number: int, kind: type[OSError], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "ladders"
    reported = SafetensorError(f"Error while serializing: I/O error: words (os error {number})")
    with pytest.raises(kind, match=words) as caught, files.whole(path):
        raise reported
    assert caught.value.__cause__ is reported
    assert str(path) in files.in_words(caught.value)


def test_another_error_of_safetensors_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="InvalidHeader"), files.whole(tmp_path / "a"):
        raise SafetensorError("Error while deserializing header: InvalidHeader")
