"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified by hash before they are used."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tp_grpo.store import files
from tp_grpo.store.compare import flatten

WEIGHTS, STATE, META = "trainable.safetensors", "training_state.pt", "state.json"
ADAPTER = "adapter"
BEST = "best"
LIBRARIES = ("torch", "diffusers", "peft")


@dataclass(frozen=True)
class Checkpoint:
    """A run after `epoch` epochs: trainable weights by name, the optimizer's and EMA's state, and the config it had.

    scores: of the evaluation after that epoch, by name; empty when there was none. tracker: the run's id there.
    versions: of the libraries that wrote it.
    """

    epoch: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)
    tracker: str = ""
    versions: dict[str, str] = field(default_factory=lambda: versions())


class Checkpoints:
    """The folder `checkpoints/` of a run: the `keep` newest, the best, and every `keep_every`-th for good.

    best: the score whose highest value marks the best, by the link `best`; "" for none.
    """

    def __init__(self, folder: Path, keep_every: int, keep: int = 2, best: str = "") -> None:
        self.folder, self.keep_every, self.keep, self.best_by = folder, keep_every, keep, best

    def save(self, checkpoint: Checkpoint, export: Callable[[Path], None]) -> Path:
        """Write `epoch-N`; a crash at any moment leaves the one before it whole. Returns its folder.

        export: writes what the checkpoint is good for elsewhere into the folder it is given, `adapter/`.
        Raises NoRoomError when the disk is full; then nothing is changed.
        """
        final = self.folder / f"epoch-{checkpoint.epoch}"
        with files.whole(final, self._needed(checkpoint)) as draft:
            draft.mkdir()
            save_file(
                {name: value.contiguous() for name, value in checkpoint.weights.items()},
                draft / WEIGHTS,
            )
            torch.save(checkpoint.state, draft / STATE)
            export(draft / ADAPTER)
            written = sorted(path for path in draft.rglob("*") if path.is_file())
            meta = {
                "epoch": checkpoint.epoch,
                "config": checkpoint.config,
                "scores": checkpoint.scores,
                "tracker": checkpoint.tracker,
                "versions": checkpoint.versions,
                "sha256": {str(path.relative_to(draft)): files.sha256(path) for path in written},
            }
            (draft / META).write_text(_sealed(meta))
        self.tidy()
        return final

    def check_room(self, checkpoint: Checkpoint) -> None:
        """Raises NoRoomError when the disk has no room for it, before anything is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.check_room(self.folder / f"epoch-{checkpoint.epoch}", self._needed(checkpoint))

    def _needed(self, checkpoint: Checkpoint) -> int:
        """Bytes: as many as the one before took, and at least the tensors'."""
        before = [files.size(self.folder / f"epoch-{epoch}") for epoch in self.epochs()[-1:]]
        return max(_bytes(checkpoint.weights) + _bytes(checkpoint.state), *before, 0)

    def add_scores(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Of an evaluation that was made up for after the checkpoint was written."""
        path = self.folder / f"epoch-{epoch}" / META
        meta = _read_meta(path.parent)
        with files.whole(path) as draft:
            draft.write_text(_sealed({**meta, "scores": dict(scores)}))
        self.tidy()

    def tidy(self) -> None:
        """Mark the best and remove what need not stay, or a kill has left half removed."""
        best = self.best()
        link = self.folder / BEST
        if best is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or os.readlink(link) != f"epoch-{best}":
            draft = self.folder / f".draft-{BEST}"
            draft.unlink(missing_ok=True)
            draft.symlink_to(f"epoch-{best}")
            draft.replace(link)
        for epoch in self.epochs()[: -self.keep]:
            if epoch % self.keep_every and epoch != best:
                files.remove(self.folder / f"epoch-{epoch}")
        for left in self.folder.glob(f"{files.DOOMED}*"):
            shutil.rmtree(left)

    def best(self) -> int | None:
        """The epoch with the highest score, the first of equals; None where none has one."""
        found: list[tuple[float, int]] = []
        for epoch in self.epochs():
            try:
                score = (
                    _read_meta(self.folder / f"epoch-{epoch}")
                    .get("scores", {})
                    .get(self.best_by, math.nan)
                )
            except ValueError:  # `newest` and `load` speak of damage
                continue
            if not math.isnan(score):
                found.append((score, -epoch))
        return -max(found)[1] if found else None

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order."""
        names = [path.name for path in self.folder.glob("epoch-*")] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix("epoch-")) for name in names)

    def came_from(self, path: str) -> bool:
        """Whether the newest whole checkpoint was written by a run with `checkpoint.resume` = path."""
        for epoch in reversed(self.epochs()):
            try:
                return (
                    flatten(_read_meta(self.folder / f"epoch-{epoch}")["config"]).get(
                        "checkpoint.resume"
                    )
                    == path
                )
            except ValueError:  # `newest` speaks of damage
                continue
        return False

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
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged; move the run's folder away to begin again"
            )
        return None

    def forget_after(self, epoch: int) -> None:
        """Remove the checkpoints of later epochs: the run goes on from `epoch`, and `auto` must find it."""
        for later in self.epochs():
            if later > epoch:
                files.remove(self.folder / f"epoch-{later}")
        if self.folder.is_dir():
            self.tidy()


def load(folder: Path) -> Checkpoint:
    """Raises ValueError when a file is missing or its content is not what was saved."""
    meta = _read_meta(folder)
    for name, digest in meta["sha256"].items():
        if not (folder / name).is_file():
            raise ValueError(f"checkpoint {folder}: {name} is missing")
        if files.sha256(folder / name) != digest:
            raise ValueError(
                f"checkpoint {folder}: {name} is damaged (its SHA-256 is not the one in {META})"
            )
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    rest = (meta["config"], meta["scores"], meta["tracker"], meta["versions"])
    return Checkpoint(meta["epoch"], load_file(folder / WEIGHTS), state, *rest)


def versions() -> dict[str, str]:
    """Of the libraries that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def warn_of_versions(found: Checkpoint) -> None:
    """Other versions than the checkpoint's may round otherwise: the run goes on, but not bit for bit."""
    now = versions()
    changed = [
        f"{name} {old} then, {now.get(name)} now"
        for name, old in found.versions.items()
        if old != now.get(name)
    ]
    if changed:
        warnings.warn(
            f"epoch {found.epoch} was written by other versions ({'; '.join(changed)}): the run goes on, but need not "
            "give the numbers it would have given",
            stacklevel=2,
        )


def _read_meta(folder: Path) -> dict[str, Any]:
    """Raises ValueError when it is missing, is not JSON, or is not what was written."""
    if not (folder / META).is_file():
        raise ValueError(f"checkpoint {folder}: there is no {META}")
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        seal = meta.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:  # not JSON, not UTF-8, or not ours
        raise ValueError(f"checkpoint {folder}: {META} is damaged ({error!r})") from error
    if seal != _seal(meta):
        raise ValueError(
            f"checkpoint {folder}: {META} is damaged (its content is not what its seal says)"
        )
    return meta


def _sealed(meta: Mapping[str, Any]) -> str:
    return json.dumps({**meta, "seal": _seal(meta)}, indent=1)


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _bytes(value: Any) -> int:
    """Of all tensors in nested containers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for inner in value.values() for tensor in _tensors(inner))
    elif isinstance(value, list | tuple):
        yield from (tensor for inner in value for tensor in _tensors(inner))
