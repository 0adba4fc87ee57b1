"""Files and folders that are whole or absent, whenever a run is killed; and full disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

DOOMED = ".doomed-"  # prefix of folders that are being removed
os.umask(_UMASK := os.umask(0))  # it is read by setting it, which threads must not do
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(OSError):
    """The disk is full. The message says where, and how many bytes were needed and free."""


@contextmanager
def whole(path: Path, needed: int = 0) -> Iterator[Path]:
    """Inside, write a file or folder at the path yielded; then it is flushed and renamed to `path`.

    If anything fails, the old `path` stays; an old folder is absent between two renames. Files get
    the mode that the umask gives.
    needed: bytes about to be written, 0 if unknown. Raises NoRoomError if the disk is too full,
    IsADirectoryError where a file would take the place of a folder, which may hold anything.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft-{path.name}")
    remove(draft)
    free = check_room(path, needed)
    try:
        yield draft
        if path.is_dir() and not draft.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for part in (*draft.rglob("*"), draft):
            share(part)
            flush(part)
    except BaseException as error:
        full = _says_full(error) or shutil.disk_usage(path.parent).free < needed - size(draft)
        remove(draft)
        if full and isinstance(error, Exception):
            raise _no_room(path, needed, free) from error
        if (known := os_error(error, path)) is not None:
            raise known from error
        raise
    if path.is_dir():
        remove(path)
    draft.replace(path)
    flush(path.parent)


def share(path: Path) -> None:
    """Give a file the mode that a new one has: safetensors writes for the owner alone."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)


def check_room(path: Path, needed: int) -> int:
    """Bytes free where `path` will be; raises NoRoomError if fewer than `needed`."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise _no_room(path, needed, free)
    return free


def remove(path: Path) -> None:
    """Remove a file or folder, if present; a folder is renamed first, so that no half is read.

    Of a link, such as that to a checkpoint on another disk, only the link goes.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{DOOMED}{path.name.lstrip('.')}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write it through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(path: Path) -> IO[str]:
    """Lock a file for this process until the file returned is closed or the process ends.

    Raises ValueError, naming the holder, if another process has it. Some file systems do not lock.
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


def expanded(path: str) -> Path:
    """The path with a leading `~` as the home folder; the shell leaves the one in --out=~/x."""
    return Path(os.path.expanduser(path))


def check_writable(folder: Path, setting: str) -> None:
    """Make the folder; raises ValueError that names the setting if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{setting}: {folder} cannot be written ({error.strerror})") from error


def in_words(error: OSError) -> str:
    """The file and what is wrong with it."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def os_error(error: BaseException, path: Path) -> OSError | None:
    """What safetensors, writing `path`, reports as an exception of its own; None for another."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    if not isinstance(error, SafetensorError) or match is None:
        return None
    return OSError(int(match[1]), os.strerror(int(match[1])), str(path))


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append a JSON line in one write. Raises NoRoomError."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _no_room(path, 0, shutil.disk_usage(path.parent).free) from error
        raise


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError that names the file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without lines that were cut short."""
    values = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            values.append(value)
    return values


def sha256(path: Path) -> str:
    """The digest of a file's content, read in pieces: it may be larger than the memory left."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def _says_full(error: BaseException) -> bool:
    known = error if isinstance(error, OSError) else os_error(error, Path())
    full = known is not None and known.errno in _NO_SPACE
    return full or "No space left on device" in str(error)


def _no_room(path: Path, needed: int, free: int) -> NoRoomError:
    wanted = f"about {needed:,} bytes were needed and " if needed else ""
    return NoRoomError(errno.ENOSPC, f"the disk is full: {wanted}{free:,} were free for {path}")
