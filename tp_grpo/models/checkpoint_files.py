"""The files of a checkpoint's parts: read as configs, found as weights, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

# Any of these is a tokenizer's vocabulary; ByT5 reads bytes and has none.
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
BYTES = ("ByT5Tokenizer", "ByT5TokenizerFast")
POINTER = b"version https://git-lfs"  # how the file begins that git keeps in a large one's place
# Files whose content is an object, never a list; any other .json need only be JSON.
OBJECTS = (
    *("config.json", "scheduler_config.json", "tokenizer_config.json", "adapter_config.json"),
    *VOCABULARIES[:2],
)


class Fields(dict[str, Any]):
    """A part's config. Raises ValueError, which names `file`, where a field that it lacks is read.

    A config of which a field is null or of another type cannot be told from a whole one here:
    `usable` is for what it then leads to.
    """

    def __init__(self, values: Mapping[str, Any], file: object) -> None:
        super().__init__(values)
        self.file = file

    def __missing__(self, field: str) -> NoReturn:
        raise ValueError(f"model.path: {self.file} has no {field}; fetch it again")


@contextmanager
def usable(path: str) -> Iterator[None]:
    """Inside, a checkpoint's configs are used. Raises ValueError for what they cannot serve."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"model.path = {path!r}: a config of its transformer, VAE or scheduler has a field "
            f"that cannot be used, {type(error).__name__}: {error}; fetch the configs again"
        ) from error


def components(folder: Path) -> dict[str, tuple[str, str]]:
    """By name of a part that model_index.json lists: its library and its class."""
    index = read_json(folder / "model_index.json")
    listed = {name: origin for name, origin in index.items() if isinstance(origin, list)}
    return {
        name: (origin[0], origin[1])
        for name, origin in listed.items()
        if not name.startswith("_") and len(origin) == 2 and all(map(_is_text, origin))
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def check_part(folder: Path, class_name: str, convert: str) -> None:
    """Raises ValueError for a component's folder that a download left incomplete.

    convert: a command that writes the checkpoint's weights as .safetensors.
    """
    name = folder.name
    _check_texts(folder)
    if name.startswith("tokenizer"):
        if class_name not in BYTES:
            _check_vocabulary(folder)
    elif name == "scheduler":
        _require(folder / "scheduler_config.json")
    elif has_weights(name):
        _require(folder / "config.json")
        _check_weights(folder, convert)


def _check_vocabulary(folder: Path) -> None:
    """Raises ValueError for a tokenizer that lacks words or, by byte pairs, how they merge."""
    present = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not present:  # transformers silently makes a tokenizer that knows no word
        listed = ", ".join(VOCABULARIES)
        raise ValueError(f"model.path: {folder} holds no vocabulary: none of {listed}")
    if (used := present[0]) == "tokenizer.json":
        model = read_json(folder / used).get("model")
        words = isinstance(model, dict) and model.get("vocab")
    elif used == "vocab.json":
        _require(folder / "merges.txt")
        words = read_json(folder / used)
    else:
        words = (folder / used).stat().st_size
    if not words:
        raise ValueError(f"model.path: {folder / used} holds no vocabulary; fetch it again")


def _check_texts(folder: Path) -> None:
    """Raises ValueError for a config or a vocabulary that cannot be read."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix in (".model", ".txt", ".jinja"):
            refuse_pointer(path)


def variant(folder: Path) -> str | None:
    """The `variant` of file names, such as fp16, that a pipeline of this folder is loaded with.

    None where each part has files without one.
    """
    parts = [folder / name for name in components(folder) if (folder / name).is_dir()]
    return common_variant({part.name: [f.name for f in part.iterdir()] for part in parts})


def common_variant(parts: Mapping[str, Collection[str]]) -> str | None:
    """As `variant`, by the names of the files in each part."""
    found = {_variant(names, stem) for part, names in parts.items() if (stem := _stem(part))}
    return min(found - {""}, default=None)


def weight_files(folder: Path) -> list[Path]:
    """The files that a part's weights load from: those without a variant, else with it."""
    stem = _stem(folder.name)
    suffix = _variant([path.name for path in folder.iterdir()], stem)
    index = folder / ".".join(filter(None, (f"{stem}.safetensors.index", suffix, "json")))
    if not index.is_file():
        return [folder / ".".join(filter(None, (stem, suffix, "safetensors")))]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(map(_is_text, names.values())):
        raise ValueError(f"model.path: {index} lists no files (weight_map); fetch it again")
    return [folder / name for name in sorted(set(names.values()))]


def has_weights(part: str) -> bool:
    return bool(_stem(part))


def _stem(part: str) -> str:
    """What the names of a part's weights begin with; empty for a part without weights."""
    if part in ("transformer", "vae"):
        return "diffusion_pytorch_model"
    return "model" if part.startswith("text_encoder") else ""


def _variant(names: Collection[str], stem: str) -> str:
    """The variant of the weights' names where there are none without; empty otherwise."""
    if {f"{stem}.safetensors", f"{stem}.safetensors.index.json"} & set(names):
        return ""
    form = re.compile(rf"{stem}(?:\.safetensors\.index\.(\w+)\.json|\.(\w+)\.safetensors)")
    found = [match[1] or match[2] for name in names if (match := form.fullmatch(name))]
    return min(found, default="")


def _check_weights(folder: Path, convert: str) -> None:
    """Raises ValueError for weights that are missing or cut short; reads only their headers."""
    paths = weight_files(folder)
    pickles = sorted(path.name for path in folder.glob("*pytorch_model*.bin"))
    if pickles and not any(path.exists() for path in paths):
        raise ValueError(
            f"model.path: {folder} holds its weights only as {pickles[0]}; a .bin file can run "
            f"code when it loads, so only .safetensors are read; convert it: {convert}"
        )
    for path in paths:
        shapes(path)


def shapes(path: Path, field: str = "model.path") -> dict[str, list[int]]:
    """The shapes of a .safetensors file's tensors, by name; reads only its header.

    Raises ValueError that begins with `field`, the setting that names the file.
    """
    _require(path, field)
    refuse_pointer(path, field)
    try:
        with safe_open(path, "pt") as held:
            return {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{field}: {path} is damaged ({error}); fetch it again") from error


def read_json(path: Path, field: str = "model.path") -> dict[str, Any]:
    """Raises ValueError that names the file if it is no JSON, or a list in a config's place."""
    _require(path, field)
    refuse_pointer(path, field)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: {path} is no JSON ({error}); fetch it again") from error
    is_index = path.name.startswith("model_index") or ".index." in path.name
    if not isinstance(content, dict) and (is_index or path.name in OBJECTS):
        kind = type(content).__name__
        raise ValueError(f"{field}: {path} holds a {kind}, not an object; fetch it again")
    return content


def _require(path: Path, field: str = "model.path") -> None:
    if path.is_dir():
        raise ValueError(f"{field}: {path} is a folder in the place of a file; fetch it again")
    if not path.is_file():
        raise ValueError(f"{field}: {path} is missing; was the download broken off?")


def refuse_pointer(path: Path, field: str = "model.path") -> None:
    """Raises ValueError for the pointer that git-lfs leaves where it did not fetch the file."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(POINTER))
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error}") from error
    if begin == POINTER:
        raise ValueError(
            f"{field}: {path} is a git-lfs pointer, not the file itself; fetch it again "
            "(in a git clone: `git lfs pull`)"
        )
