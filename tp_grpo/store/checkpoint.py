"""Checkpoints that are whole or absent: written as a draft, renamed, and verified by hash."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tp_grpo.store import files
from tp_grpo.store.compare import differences, flatten, same_folder

WEIGHTS, STATE, META = "trainable.safetensors", "training_state.pt", "state.json"
ADAPTER = "adapter"
BEST = "best"
META_FIELDS = ("epoch", "config", "scores", "tracker", "versions")  # of a Checkpoint
LIBRARIES = ("torch", "diffusers", "peft")


class UnreadableError(ValueError):
    """A checkpoint that is there and may be whole, but that this process may not read."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after `epoch` epochs: trained weights by name, optimizer and EMA state, its config.

    scores: of that epoch's evaluation by name, empty without one; tracker: the run's id there;
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
    """A run's folder `checkpoints/`: the `keep` newest, the best, and every `keep_every`-th.

    best: the score whose highest value marks the best by a link of that name; "" for none.
    """

    def __init__(self, folder: Path, keep_every: int, keep: int = 2, best: str = "") -> None:
        self.folder, self.keep_every, self.keep, self.best_by = folder, keep_every, keep, best

    def path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}"

    def save(self, checkpoint: Checkpoint, export: Callable[[Path], None]) -> None:
        """Write `epoch-N`; a crash at any moment leaves the one before it whole.

        A folder of that name that is no checkpoint of that epoch is renamed, with a warning.
        export: writes the policy for use elsewhere into a folder. Raises NoRoomError if the disk is
        full; then nothing changes.
        """
        self._make_way(checkpoint.epoch)
        with files.whole(self.path(checkpoint.epoch), self._needed(checkpoint)) as draft:
            draft.mkdir()
            weights = {name: value.contiguous() for name, value in checkpoint.weights.items()}
            save_file(weights, draft / WEIGHTS)
            torch.save(checkpoint.state, draft / STATE)
            export(draft / ADAPTER)
            written = sorted(path for path in draft.rglob("*") if path.is_file())
            meta = {name: getattr(checkpoint, name) for name in META_FIELDS}
            meta["sha256"] = {str(path.relative_to(draft)): files.sha256(path) for path in written}
            (draft / META).write_text(_sealed(meta))
        self.tidy()

    def check_room(self, checkpoint: Checkpoint) -> None:
        """Raises NoRoomError if the disk has no room for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.check_room(self.path(checkpoint.epoch), self._needed(checkpoint))

    def _needed(self, checkpoint: Checkpoint) -> int:
        """Bytes: those of the checkpoint before, and at least the tensors'."""
        before = [files.size(self.path(epoch)) for epoch in self.epochs()[-1:]]
        return max(_bytes(checkpoint.weights) + _bytes(checkpoint.state), *before, 0)

    def add_scores(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Add scores from an evaluation that ran after its checkpoint was saved."""
        meta = _read_meta(self.path(epoch))
        with files.whole(self.path(epoch) / META) as draft:
            draft.write_text(_sealed({**meta, "scores": dict(scores)}))
        self.tidy()

    def tidy(self) -> None:
        """Mark the best; remove checkpoints that need not stay, and half-removed leftovers."""
        best, link = self.best(), self.folder / BEST
        if link.is_dir() and not link.is_symlink():
            # The link was followed when this was copied.
            if (link / META).is_file() or not any(link.iterdir()):
                files.remove(link)
            else:
                self._rename(link, "link to the best checkpoint")
        if best is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or os.readlink(link) != f"epoch-{best}":
            draft = self.folder / f".draft-{BEST}"
            draft.unlink(missing_ok=True)
            draft.symlink_to(f"epoch-{best}")
            draft.replace(link)
        for epoch in self.epochs()[: -self.keep]:
            if epoch % self.keep_every and epoch != best:
                files.remove(self.path(epoch))
        for left in self.folder.glob(f"{files.DOOMED}*"):
            files.remove(left)

    def best(self) -> int | None:
        """The epoch with the highest score, the first of equals; None if none has one."""
        scores = {
            epoch: meta.get("scores", {}).get(self.best_by, math.nan)
            for epoch, meta in self._readable()
        }
        known = {epoch: score for epoch, score in scores.items() if not math.isnan(score)}
        return max(known, key=known.__getitem__, default=None)

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order; other folders are never touched."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        named = [re.fullmatch(r"epoch-([1-9]\d*)", path.name) for path in folders]
        return sorted(int(match[1]) for match in named if match and self._is_ours(int(match[1])))

    def _is_ours(self, epoch: int) -> bool:
        """Whether `epoch-N` is that epoch's checkpoint, damaged or not, not a copy of another."""
        folder = self.path(epoch)
        if not any((folder / name).exists() for name in (META, WEIGHTS, STATE, ADAPTER)):
            return False
        try:
            return bool(_read_meta(folder)["epoch"] == epoch)
        except ValueError:
            return True

    def _make_way(self, epoch: int) -> None:
        path = self.path(epoch)
        if path.exists() and not self._is_ours(epoch):
            self._rename(path, f"checkpoint of epoch {epoch}")

    @staticmethod
    def _rename(path: Path, needed: str) -> None:
        """Keep what stands in the place of what is `needed` under another name, with a warning."""
        number = 1
        while (other := path.with_name(f"{path.name}-other-{number}")).exists():
            number += 1
        path.rename(other)
        warnings.warn(f"{path} is no {needed}; it is now {other}", stacklevel=4)

    def came_from(self, path: str) -> bool:
        """Whether the newest readable checkpoint is of a run with `checkpoint.resume` = path."""
        newest = [meta["config"] for _, meta in self._readable()][-1:]
        given = [flatten(config).get("checkpoint.resume", "") for config in newest]
        return any(same_folder(each, path) for each in given)

    def _readable(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Epochs with their META, in order; `newest` and `load` report damaged ones."""
        for epoch in self.epochs():
            with contextlib.suppress(ValueError):
                yield epoch, _read_meta(self.path(epoch))

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there never was one; warns of damaged ones.

        Raises ValueError if all are damaged: a run must not start again unasked. UnreadableError:
        nor must it go back, and remove what came later.
        """
        for epoch in reversed(self.epochs()):
            try:
                return load(self.path(epoch))
            except UnreadableError:
                raise
            except ValueError as error:
                warnings.warn(f"{error}; trying the one before it", stacklevel=2)
        if self.epochs():
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged; move the run's folder away to "
                "start again"
            )
        return None

    def forget_after(self, epoch: int) -> None:
        """Remove later checkpoints: the run resumes from `epoch`, and `auto` must find it."""
        for later in self.epochs():
            if later > epoch:
                files.remove(self.path(later))
        if self.folder.is_dir():
            self.tidy()


def load(folder: Path) -> Checkpoint:
    """Raises ValueError if a file is missing or its content is not what was saved.

    UnreadableError if this process may not read it.
    """
    try:
        meta = _read_meta(folder)
        for name, digest in meta["sha256"].items():
            if not (folder / name).is_file():
                raise ValueError(f"checkpoint {folder}: {name} is missing")
            if files.sha256(folder / name) != digest:
                raise ValueError(
                    f"checkpoint {folder}: {name} is damaged (its SHA-256 is not the one in {META})"
                )
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise UnreadableError(f"checkpoint {folder} cannot be read: {error}") from error
    return Checkpoint(weights=weights, state=state, **{name: meta[name] for name in META_FIELDS})


def versions() -> dict[str, str]:
    """{library: version} for those that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def warn_of_versions(checkpoint: Checkpoint) -> None:
    """Warns if other versions wrote it, which may round otherwise."""
    if changed := differences(checkpoint.versions, versions()):
        warnings.warn(
            f"epoch {checkpoint.epoch} was written by other versions, so this run may give other "
            "numbers than it would have:\n" + "\n".join(changed.values()),
            stacklevel=2,
        )


def _read_meta(folder: Path) -> dict[str, Any]:
    """Raises ValueError if it is missing, is not JSON, or is not what was written."""
    try:
        if not (folder / META).is_file():
            raise ValueError(_no_meta(folder))
        text = (folder / META).read_bytes()
    except OSError as error:
        raise UnreadableError(f"checkpoint {folder} cannot be read: {error}") from error
    try:
        meta: dict[str, Any] = json.loads(text)
        seal = meta.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:  # not JSON, not UTF-8, or not ours
        raise ValueError(f"checkpoint {folder}: {META} is damaged ({error!r})") from error
    if seal != _seal(meta):
        raise ValueError(
            f"checkpoint {folder}: {META} is damaged (its content is not what its seal says)"
        )
    return meta


def _no_meta(folder: Path) -> str:
    """In words, with the checkpoints inside where it is a run's folder."""
    held = [
        inside.path(epoch)
        for inside in (Checkpoints(folder, 1), Checkpoints(folder / "checkpoints", 1))
        for epoch in inside.epochs()
    ]
    name = f"; name one of those inside: {', '.join(map(str, held))}" if held else ""
    return f"checkpoint {folder}: no {META}{name}"


def _sealed(meta: Mapping[str, Any]) -> str:
    return json.dumps({**meta, "seal": _seal(meta)}, indent=1)


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _bytes(value: Any) -> int:
    """The size of all tensors in nested containers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for inner in value.values() for tensor in _tensors(inner))
    elif isinstance(value, list | tuple):
        yield from (tensor for inner in value for tensor in _tensors(inner))
