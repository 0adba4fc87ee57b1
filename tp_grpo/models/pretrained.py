"""Finding a diffusers checkpoint, a folder or a hub id, and checking it before weights load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import list_repo_files

from tp_grpo.models import checkpoint_files

_REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK, _BLOCKS = 1 << 16, 64  # what a fingerprint reads of a large file


def published() -> dict[str, dict[str, Any]]:
    """The checkpoints that ship as architectures/*.json, by hub id.

    Each holds the fields of an `Architecture`, its licence (the hub's name, the title), and what to
    download: gigabytes, and the single-file copies to exclude, which nothing here reads.
    """
    folder = resources.files("tp_grpo.models") / "architectures"
    entries = [json.loads(file.read_text("utf-8")) for file in folder.iterdir()]
    return {entry["hub_id"]: entry for entry in sorted(entries, key=lambda e: str(e["hub_id"]))}


def check_file(path: str, pipeline_class: type[DiffusionPipeline]) -> None:
    """Raises ValueError for a single file of weights, with the command that converts it."""
    if not os.path.isfile(path):  # False too where it may not be asked
        return
    convert = "download the model's folder in the layout of diffusers"
    name = pipeline_class.__name__
    if hasattr(pipeline_class, "from_single_file"):
        convert = (
            f'convert it: python -c "import torch; from diffusers import {name}; '
            f"{name}.from_single_file('{path}', torch_dtype=torch.bfloat16)"
            ".save_pretrained('FOLDER')\""
        )
    raise ValueError(
        f"model.path = {path!r} is a single file; a model is a folder with its text encoders, VAE, "
        f"scheduler and configs: {convert}"
    )


def read_configs(path: str, revision: str, pipeline_class: str) -> dict[str, dict[str, Any]]:
    """The configs of transformer and VAE, and as `index` that of the pipeline.

    Raises ValueError unless `path` holds that pipeline.
    """
    folder = local_folder(path)
    if folder is not None:
        check_folder(folder, pipeline_class)
    elif path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"model.path = {path!r} is neither a folder nor a hub id (owner/name)")
    where, revised = str(folder or path), {"revision": revision or None}
    try:
        configs = {"index": DiffusionPipeline.load_config(where, **revised)}
        configs |= {
            name: checkpoint_files.Fields(
                AutoencoderKL.load_config(where, subfolder=name, **revised),
                f"{where}/{name}/config.json",
            )
            for name in ("transformer", "vae")
        }
    except (OSError, ValueError) as error:
        message = unreadable(path) if folder is None else f"model.path = {path!r}: {error}"
        raise ValueError(message) from error
    _check_class(f"model.path = {path!r}", configs["index"].get("_class_name"), pipeline_class)
    return configs


def fetch(pipeline_class: type[DiffusionPipeline], path: str, revision: str) -> str:
    """The checkpoint's folder: a local one, or the hub id's in the cache, downloaded if missing.

    Raises ValueError for one that cannot be fetched.
    """
    folder = local_folder(path)
    if folder is not None:
        return str(folder)
    try:
        cached = pipeline_class.download(
            path, revision=revision or None, variant=_hub_variant(path, revision)
        )
    except Exception as error:  # without a network, of the HTTP library's own kinds
        raise ValueError(unreadable(path)) from error
    check_folder(Path(cached), pipeline_class.__name__)
    return str(cached)


def _hub_variant(path: str, revision: str) -> str | None:
    """As `variant` of the repository's files; None if it cannot be asked, and the cache serves."""
    try:
        listed = list_repo_files(path, revision=revision or None)
    except Exception:  # as above
        return None
    parts: dict[str, list[str]] = {}
    for name in listed:
        part, _, file = name.partition("/")
        parts.setdefault(part, []).append(file)
    return checkpoint_files.common_variant(parts)


def local_folder(path: str) -> Path | None:
    """`path` itself or below the repository, None if neither is a folder.

    Raises ValueError where a folder above it may not be read.
    """
    try:
        folders = (Path(path), _REPOSITORY / path)
        return next((folder for folder in folders if folder.is_dir()), None)
    except OSError as error:
        raise ValueError(f"model.path = {path!r} cannot be read: {error}") from error


def check_folder(folder: Path, pipeline_class: str) -> None:
    """Raises ValueError that names the other pipeline it holds, or what is missing or damaged."""
    where = f"model.path = {str(folder)!r}"
    index = folder / "model_index.json"
    convert = (
        f'python -c "from diffusers import {pipeline_class}; '
        f"{pipeline_class}.from_pretrained('{folder}').save_pretrained('FOLDER')\""
    )
    try:
        if not index.exists():
            raise ValueError(f"{where} is not a diffusers checkpoint: it has no model_index.json")
        _check_class(where, checkpoint_files.read_json(index).get("_class_name"), pipeline_class)
        listed = checkpoint_files.components(folder)
        for name in ("transformer", "vae", "scheduler"):
            if name not in listed:
                raise ValueError(f"{where}: {index.name} lists no {name}; fetch it again")
        for name, (_, class_name) in listed.items():
            if not (folder / name).is_dir():
                raise ValueError(f"{where}: {name}/ ({class_name}) is missing; fetch that folder")
            checkpoint_files.check_part(folder / name, class_name, convert)
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def _check_class(where: str, held: Any, needed: str) -> None:
    if held != needed:
        raise ValueError(f"{where} holds a {held}; this model.type needs a {needed}")


def absent(folder: Path, parts: Iterable[str]) -> list[str]:
    """The parts that the checkpoint lacks by design, such as T5 in a Stable Diffusion 3."""
    held = checkpoint_files.components(folder)
    return [name for name in parts if name not in held]


def unreadable(path: str) -> str:
    """The message for a `path` that is no folder and cannot be read from the hub or its cache."""
    entry = published().get(path)
    size = f", about {entry['download']['gigabytes']} GB" if entry else ""
    exclude = entry["download"]["exclude"] if entry else ()
    download = " ".join([f"hf download {path}", *(f"--exclude '{name}'" for name in exclude)])
    licence = "accept its licence on its hub page and log in (`hf auth login`)"
    reason = f"check the spelling; if it is gated, {licence}"
    if entry:
        free = entry["licence"]["hub_name"] == "apache-2.0"
        reason = "it needs the network once" if free else f"it is gated: {licence}"
    return (
        f"model.path = {path!r} is neither a folder here nor a hub repository that can be read: "
        f"{reason}. To work offline, download it first{size} (`{download}`), or name a folder"
    )


def check_resolution(height: int, width: int, multiple: int, largest: int | None = None) -> None:
    """Raises ValueError with the nearest sizes unless both are multiples of VAE scale x patch.

    largest: pixels a side that the transformer has position embeddings for; None: any.
    """
    for name, size in (("height", height), ("width", width)):
        if largest is not None and size > largest:
            raise ValueError(f"model.{name} = {size} is more than this model's {largest} pixels")
        if size <= 0 or size % multiple:
            below = size // multiple * multiple
            near = f"{below} and {below + multiple}" if below > 0 else f"{multiple}"
            raise ValueError(
                f"model.{name} = {size} is not a multiple of {multiple} pixels "
                f"(VAE scale x patch); the nearest: {near}"
            )


def fingerprint(folder: Path, parts: Iterable[str]) -> str:
    """A hash of the parts' files: names, sizes and content, of large files 64 blocks.

    Reading 10 GB of encoders in full would cost what the cache saves.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(p for part in parts for p in (folder / part).rglob("*") if p.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}:{size}:".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        raise ValueError(f"model.path = {str(folder)!r} cannot be read: {error}") from error
    return digest.hexdigest()
