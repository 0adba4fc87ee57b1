"""What every scorer with a model needs: weights, or an error that says how to get them; device, dtype, chunks."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a scorer's published weights are.

    scorer: its name, for the messages; repo: the hub id; size: for people, "3.9 GB"; file: the one file that is needed,
    "" for a folder that `from_pretrained` reads; files: what that reads of the repository, which may hold the weights
    in three formats; option: the constructor's argument that names a local copy.
    """

    scorer: str
    repo: str
    size: str
    file: str = ""
    option: str = "path"
    files: tuple[str, ...] = ()

    @property
    def fetch(self) -> tuple[str, ...]:
        """The files that are needed, and no others."""
        return (self.file,) if self.file else self.files

    def missing(self, name: str, why: object) -> ValueError:
        """The error for weights that cannot be had: what, why, and the two ways out."""
        reason = str(why).strip().split("\n")[0]
        local = f"a local copy of {self.file}" if self.file else "a local folder with them"
        return ValueError(
            f"{self.scorer}: the weights {name} cannot be loaded: {reason} With a network, "
            f"`hf download {' '.join([self.repo, *self.fetch])}` fetches them (about {self.size}); without, set "
            f"rewards.scorers.{self.scorer}.{self.option} to {local}."
        )

    def pretrained(self, load: Callable[[str], T], path: str = "") -> T:
        """`load(folder or hub id)`, as in `AutoProcessor.from_pretrained`. Raises ValueError for missing weights."""
        name = self.locate(path)
        try:
            return load(name)
        except (OSError, ValueError) as error:
            raise self.missing(name, error) from error

    def model(self, cls: Any, path: str, dtype: torch.dtype, unused: tuple[str, ...] = ()) -> Any:
        """A transformers model of class `cls`, in eval mode, without gradients.

        unused: prefixes of parameters that no forward pass reads. Raises ValueError for missing weights, and for a
        checkpoint that lacks a parameter of the model: transformers would fill it with noise, and the scores with it.
        """
        model, info = self.pretrained(
            lambda name: cls.from_pretrained(name, dtype=dtype, output_loading_info=True), path
        )
        parameters = {name for name, _ in model.named_parameters()}
        lost = sorted(
            key for key in info["missing_keys"] if key in parameters and not key.startswith(unused)
        )
        if lost:
            raise self.missing(
                path or self.repo,
                f"they are not those of a {cls.__name__}: {len(lost)} of its {len(parameters)} parameters are absent, "
                f"{lost[0]} the first.",
            )
        return model.eval().requires_grad_(False)

    def find(self, path: str = "") -> Path:
        """The file: `path` itself, in the folder `path`, or of the hub's repository. Raises ValueError if missing."""
        from huggingface_hub import hf_hub_download

        name = self.locate(path)
        local = Path(name).expanduser()
        if local.is_file():
            return local
        if local.is_dir():
            if (local / self.file).is_file():
                return local / self.file
            raise self.missing(name, f"the folder has no {self.file}.")
        try:
            return Path(hf_hub_download(name, self.file))
        except (OSError, ValueError) as error:
            raise self.missing(f"{name}/{self.file}", error) from error

    def locate(self, path: str) -> str:
        """What to load: `path` or the published repository. Raises ValueError for a local path that is not there."""
        if not path:
            return self.repo
        local = Path(path).expanduser()
        if local.exists():
            return str(local)
        if _HUB_ID.fullmatch(path):
            return path
        raise self.missing(path, "there is no such file or folder.")

    def state(self, path: str = "") -> dict[str, Tensor]:
        """The tensors of the file, on the CPU; a "state_dict" inside is unwrapped. Nothing in the file is executed."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self.find(path)
        try:
            if file.suffix == ".safetensors":
                return load_file(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise self.missing(
                str(file), f"it cannot be read, {type(error).__name__}: {error}"
            ) from error
        return state.get("state_dict", state)


def fill(source: Source, model: torch.nn.Module, state: dict[str, Tensor], file: str) -> None:
    """Copy `state` into `model`; raises ValueError unless names and shapes match exactly."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        told = " ".join(str(error).split("\n")[1:3]).strip()
        raise source.missing(
            file or source.repo, f"they do not fit {type(model).__name__}: {told}"
        ) from error


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ValueError for a name that torch does not know or has not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device = {name!r} is not a device: use auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {name!r}, but torch sees no CUDA here: use auto or cpu")
    return device


def pick_dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"dtype = {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def check_batch_size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size = {size!r} must be a whole number of at least 1")
    return size


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices that cover range(n), `size` at a time."""
    return (slice(start, start + size) for start in range(0, n, size))
