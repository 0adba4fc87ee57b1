"""Finding a diffusers checkpoint, a folder or a hub id, and checking it before any weights load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError, safe_open

_REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK, _BLOCKS = 1 << 16, 64  # of a large file's content, what its fingerprint reads

MAX_TEXT = 512  # T5 tokens that the stock pipelines take

# Any of these is a tokenizer's vocabulary; ByT5 reads bytes and has none.
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
BYTES = ("ByT5Tokenizer", "ByT5TokenizerFast")

# Size of a download in GB without the single-file copies, and those copies, which nothing here reads.
PUBLISHED = {
    "stabilityai/stable-diffusion-3.5-medium": (
        17,
        ("sd3.5_medium.safetensors", "text_encoders/*"),
    ),
    "black-forest-labs/FLUX.1-dev": (34, ("flux1-dev.safetensors", "ae.safetensors")),
}


def read_configs(path: str, revision: str, pipeline_class: str) -> dict[str, dict[str, Any]]:
    """The configs of transformer and VAE. Raises ValueError when `path` is no checkpoint of that pipeline."""
    folder = local_folder(path)
    if folder is not None:
        check_folder(folder, pipeline_class)
    elif not _is_hub_id(path):
        raise ValueError(
            f"model.path = {path!r}: there is no such folder, and it does not look like a hub id (owner/name)"
        )
    where, revised = str(folder or path), {"revision": revision or None}
    try:
        found = DiffusionPipeline.load_config(where, **revised)["_class_name"]
        configs = {
            name: AutoencoderKL.load_config(where, subfolder=name, **revised)
            for name in ("transformer", "vae")
        }
    except (OSError, ValueError) as error:
        raise ValueError(
            unreadable(path) if folder is None else f"model.path = {path!r}: {error}"
        ) from error
    if found != pipeline_class:
        raise ValueError(
            f"model.path = {path!r} holds a {found}; this model.type needs a {pipeline_class}"
        )
    return configs


def fetch(pipeline_class: type[DiffusionPipeline], path: str, revision: str) -> str:
    """The folder of the checkpoint's files: a local one as it is; a hub id's from the cache, downloaded if need be."""
    folder = local_folder(path)
    if folder is not None:
        return str(folder)
    try:
        cached = pipeline_class.download(path, revision=revision or None)
    except (OSError, ValueError) as error:
        raise ValueError(unreadable(path)) from error
    check_folder(Path(cached), pipeline_class.__name__)
    return str(cached)


def local_folder(path: str) -> Path | None:
    """`path` itself or below the repository, None if neither is a folder."""
    return next((folder for folder in (Path(path), _REPOSITORY / path) if folder.is_dir()), None)


def check_folder(folder: Path, pipeline_class: str) -> None:
    """Raises ValueError naming the pipeline class that the folder holds instead, or the missing folder or file."""
    where = f"model.path = {str(folder)!r}"
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{where} is not a diffusers checkpoint: it has no model_index.json")
    components = _read_json(index)
    found = components.get("_class_name")
    if found != pipeline_class:
        raise ValueError(f"{where} holds a {found}; this model.type needs a {pipeline_class}")
    for name, origin in components.items():
        if name.startswith("_") or not isinstance(origin, list) or origin[0] is None:
            continue
        if not (folder / name).is_dir():
            raise ValueError(
                f"{where}: its {name} ({origin[1]}) is missing; fetch the folder {name}/"
            )
        _check_part(folder / name, origin[1])


def _check_part(folder: Path, class_name: str) -> None:
    """Raises ValueError for what a download that was broken off leaves of a component's folder."""
    name = folder.name
    if name.startswith("tokenizer"):
        # Without a vocabulary transformers makes a tokenizer that knows no word, and does not say so.
        if class_name not in BYTES and not any((folder / file).is_file() for file in VOCABULARIES):
            raise ValueError(
                f"model.path: {folder} holds no vocabulary: none of {', '.join(VOCABULARIES)}"
            )
    elif name == "scheduler":
        _require(folder / "scheduler_config.json")
    elif name in ("transformer", "vae") or name.startswith("text_encoder"):
        _require(folder / "config.json")
        _check_weights(
            folder, "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        )


def _check_weights(folder: Path, stem: str) -> None:
    """Raises ValueError for weights that are not there, or not whole; only their headers are read."""
    index = folder / f"{stem}.safetensors.index.json"
    files = {f"{stem}.safetensors"}
    if index.is_file():
        files = set(_read_json(index)["weight_map"].values())
    for file in sorted(files):
        _require(folder / file)
        try:
            with safe_open(folder / file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"model.path: {folder / file} is damaged ({error}); fetch it again"
            ) from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"model.path: {path} is missing; was the download broken off?")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"model.path: {path} is no JSON ({error}); fetch it again") from error
    return content


def absent(folder: Path, parts: Iterable[str]) -> list[str]:
    """The parts that the checkpoint does without, such as the T5 of Stable Diffusion 3."""
    components = _read_json(folder / "model_index.json")
    return [name for name in parts if not (components.get(name) or [None])[0]]


def unreadable(path: str) -> str:
    """What to say when `path` is no folder and cannot be read from the hub or its local cache."""
    size, copies = PUBLISHED.get(path, (0, ()))
    download = " ".join([f"hf download {path}", *(f"--exclude '{name}'" for name in copies)])
    gated = (
        "it is gated: accept its licence on its hub page and log in (`hf auth login`)"
        if size
        else "check the spelling; if it is gated, accept its licence on its hub page and log in (`hf auth login`)"
    )
    return (
        f"model.path = {path!r} is neither a folder here nor a hub repository that can be read: {gated}. To work "
        f"offline, download it first{f', about {size} GB' if size else ''} (`{download}`), or name a folder"
    )


def check_resolution(height: int, width: int, multiple: int, largest: int | None = None) -> None:
    """Raises ValueError with the nearest sizes when height or width is no multiple of VAE scale x patch, or too large.

    largest: pixels a side that the transformer has position embeddings for; None: any.
    """
    for name, size in (("height", height), ("width", width)):
        if largest is not None and size > largest:
            raise ValueError(f"model.{name} = {size} is more than this model's {largest} pixels")
        if size <= 0 or size % multiple:
            below = size // multiple * multiple
            near = f"{below} and {below + multiple}" if below > 0 else f"{multiple}"
            raise ValueError(
                f"model.{name} = {size} is not a multiple of {multiple} pixels (VAE scale x patch); the nearest: {near}"
            )


def check_text(tokens: int, family: str) -> None:
    """Raises ValueError for more T5 tokens than the stock pipeline takes, which could not use such a policy."""
    if tokens > MAX_TEXT:
        raise ValueError(f"model.max_sequence_length = {tokens}: {family} takes at most {MAX_TEXT}")


def vae_scale(vae: dict[str, Any]) -> int:
    """Pixels a side of one latent pixel."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def fingerprint(folder: Path, parts: Iterable[str]) -> str:
    """A hash of the parts' files: names, sizes and content, of large files 64 blocks spread over the whole.

    Reading 10 GB of encoders to know whether they are needed at all would cost what a cache is to save.
    """
    digest = hashlib.sha256()
    for path in sorted(p for part in parts for p in (folder / part).rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}:".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
