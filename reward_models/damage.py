"""What is wrong with files of weights that a library could not read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

_POINTER = b"version https://git-lfs"  # how a file of git-lfs begins that was not fetched


def damage(files: Iterable[Path]) -> str:
    """The first file at fault, and why, in words; "" if none is known to be."""
    for file in files:
        try:
            if reason := _reason(file):
                return f"{file.name} {reason}"
        except OSError as error:
            return f"{file.name} cannot be read, {error.strerror}"
    return ""


def _reason(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        start = opened.read(len(_POINTER))
    if start == _POINTER:
        return "is a pointer of git-lfs, not the file itself, which `git lfs pull` fetches"
    if not start:
        return "is empty"
    try:
        if file.suffix == ".json" and not isinstance(json.loads(file.read_bytes()), dict):
            return "holds something other than a JSON object"
        if file.suffix == ".safetensors":
            with safe_open(file, "np"):
                pass
    except (SafetensorError, ValueError) as error:  # of json, too
        return f"is damaged or cut short, {type(error).__name__}: {error}"
    return ""
