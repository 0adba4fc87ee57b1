"""Files and folders that are whole or not there, whatever moment a run is killed at, and disks that are full."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

DOOMED = ".doomed-"  # prefix of folders being removed
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(OSError):
    """The disk is full. The message says where, how many bytes were needed and how many were free."""


@contextmanager
def whole(path: Path, needed: int = 0) -> Iterator[Path]:
    """Inside, write a file or a folder at the path given; afterwards it is flushed and takes the name `path`.

    What was called `path` stays as it was when anything goes wrong; a folder is gone for the moment between two
    renames. needed: bytes about to be written, 0 when not known. Raises NoRoomError when the disk has no room for them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft-{path.name}")
    remove(draft)
    free = check_room(path, needed)
    try:
        yield draft
        for part in (*draft.rglob("*"), draft):
            flush(part)
    except BaseException as error:
        full = _says_full(error) or shutil.disk_usage(path.parent).free < needed - size(draft)
        remove(draft)
        if full and isinstance(error, Exception):
            raise _no_room(path, needed, free) from error
        raise
    if path.is_dir():
        remove(path)
    draft.replace(path)
    flush(path.parent)


def check_room(path: Path, needed: int) -> int:
    """Bytes free where `path` is to be; its folder is there. Raises NoRoomError when fewer than `needed` are."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise _no_room(path, needed, free)
    return free


def remove(path: Path) -> None:
    """A folder or a file, if it is there; a folder loses its name first, so that half of it is never found."""
    if path.is_dir():
        doomed = path.with_name(f"{DOOMED}{path.name.lstrip('.')}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """What was written is on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(path: Path) -> IO[str]:
    """Lock a file for this process, until what is returned is closed or the process ends, however it ends.

    Raises ValueError, which names the holder, when another process has it. A file system without locks gives none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(f"{path.parent} is in use by {holder}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def append_line(path: Path, values: dict[str, Any]) -> None:
    """A JSON line in one write. Raises NoRoomError."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _no_room(path, 0, shutil.disk_usage(path.parent).free) from error
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that was cut short is as good as none."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def sha256(path: Path) -> str:
    """Of a file's content, read a piece at a time: a fully trained transformer does not fit in memory twice."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def _says_full(error: BaseException) -> bool:
    # safetensors has an exception of its own for what is an OSError elsewhere.
    return (
        isinstance(error, OSError) and error.errno in _NO_SPACE
    ) or "No space left on device" in str(error)


def _no_room(path: Path, needed: int, free: int) -> NoRoomError:
    wanted = f"about {needed:,} bytes were needed and " if needed else ""
    return NoRoomError(errno.ENOSPC, f"the disk is full: {wanted}{free:,} were free for {path}")
