"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified by hash before they are used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# What may change between two parts of one run without making it another run.
FREE_FIELDS = (
    "epochs",
    "output_dir",
    "run_name",
    "checkpoint.",
    "runtime.",
    "tracking.",
    "eval.every",
    "eval.batch_size",
    "eval.images",
)
WEIGHTS, STATE, META = "trainable.safetensors", "training_state.pt", "state.json"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `epoch` epochs: trainable weights by name, the optimizer's and EMA's state, and the config it had."""

    epoch: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run: the two newest, and every `keep_every`-th for good."""

    def __init__(self, folder: Path, keep_every: int) -> None:
        self.folder, self.keep_every = folder, keep_every

    def save(self, checkpoint: Checkpoint, export: Callable[[Path], None]) -> Path:
        """Write `epoch-N`; a crash at any moment leaves the one before it whole. Returns its folder.

        export: writes what the checkpoint is good for elsewhere into the folder it is given, `adapter/`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"epoch-{checkpoint.epoch}"
        draft = self.folder / f".draft-{checkpoint.epoch}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file({name: value.contiguous() for name, value in checkpoint.weights.items()}, draft / WEIGHTS)
        torch.save(checkpoint.state, draft / STATE)
        export(draft / ADAPTER)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        meta = {
            "epoch": checkpoint.epoch,
            "config": checkpoint.config,
            "torch": torch.__version__,
            "sha256": {str(path.relative_to(draft)): _sha256(path) for path in files},
        }
        (draft / META).write_text(json.dumps(meta, indent=1))
        for path in (*draft.rglob("*"), draft):
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        _flush(self.folder)
        for epoch in self.epochs()[:-2]:
            if epoch % self.keep_every:
                shutil.rmtree(self.folder / f"epoch-{epoch}")
        return final

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order."""
        names = [path.name for path in self.folder.glob("epoch-*")] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix("epoch-")) for name in names)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there never was one; a damaged one is passed over with a warning.

        Raises ValueError when there are some and all are damaged: a run must not begin again unasked.
        """
        for epoch in reversed(self.epochs()):
            try:
                return load(self.folder / f"epoch-{epoch}")
            except ValueError as error:
                warnings.warn(f"{error}; trying the one before it", stacklevel=2)
        if self.epochs():
            raise ValueError(f"every checkpoint in {self.folder} is damaged; move the run's folder away to begin again")
        return None

    def forget_after(self, epoch: int) -> None:
        """Remove the checkpoints of later epochs: the run goes on from `epoch`, and `auto` must find it."""
        for later in self.epochs():
            if later > epoch:
                shutil.rmtree(self.folder / f"epoch-{later}")


def load(folder: Path) -> Checkpoint:
    """Raises ValueError when a file is missing or its content is not what was saved."""
    if not (folder / META).is_file():
        raise ValueError(f"checkpoint {folder}: there is no {META}")
    try:
        meta = json.loads((folder / META).read_text())
        digests, epoch, config = meta["sha256"], meta["epoch"], meta["config"]
    except (ValueError, KeyError) as error:  # not JSON, not UTF-8, or not ours
        raise ValueError(f"checkpoint {folder}: {META} is damaged ({error})") from error
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"checkpoint {folder}: {name} is missing")
        if _sha256(folder / name) != digest:
            raise ValueError(f"checkpoint {folder}: {name} is damaged (its SHA-256 is not the one in {META})")
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return Checkpoint(epoch, load_file(folder / WEIGHTS), state, config)


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], where: Path) -> None:
    """Raises ValueError, field by field, when a run would go on with other settings than it began with."""
    before, now = _flatten(old), _flatten(json.loads(json.dumps(new)))
    changed = [
        f"  {field}: {before.get(field)!r} then, {now.get(field)!r} now"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field) and not field.startswith(FREE_FIELDS)
    ]
    if changed:
        raise ValueError(
            f"{where} holds a run with other settings:\n" + "\n".join(changed) + "\n"
            "Give the new run its own name (--config.run_name=NAME), or set these back to go on with the old one."
        )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
