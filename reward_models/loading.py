"""Weights from a local path or the hub, or an error that says how to get them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reward_models.damage import damage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Any of these sets of files is the vocabulary of a tokenizer.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))


def expanded(path: str) -> Path:
    """The path with its ~ replaced; one of an unknown user stays as it is, and is not there."""
    return Path(os.path.expanduser(path))


def has_vocabulary(folder: Path) -> bool:
    """Whether the folder holds the vocabulary of a tokenizer."""
    return any(all((folder / file).is_file() for file in files) for files in VOCABULARIES)


@dataclass(frozen=True)
class Source:
    """The published weights of a scorer.

    scorer: its name, for the messages. repo: the hub id. size: in words, "3.9 GB".
    files: the files that are read; the repository may hold the weights in other formats too.
    option: the constructor's argument that names a local copy.
    needed: the files that must be there, where not all of `files` are.
    aliases: other names of the one file, in folders that do not come from the hub.
    """

    scorer: str
    repo: str
    size: str
    files: tuple[str, ...]
    option: str = "path"
    needed: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that downloads the files."""
        return " ".join(["hf download", self.repo, *self.files])

    @property
    def local(self) -> str:
        """What the option names, as a pattern: a folder, or the one file in a folder."""
        return f"FOLDER/{self.files[0]}" if len(self.files) == 1 else "FOLDER"

    def in_cache(self) -> bool:
        """Whether the hub's cache holds the files that must be there."""
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(self.repo, file) for file in self.needed or self.files)
        return all(isinstance(path, str) for path in cached)

    def missing(self, name: str, reason: object) -> ValueError:
        """The error for weights that cannot be loaded: which, why, and the two ways out."""
        why = str(reason).strip().split("\n")[0].rstrip(".") + "."
        one = len(self.files) == 1
        local = f"a local copy of {self.files[0]}" if one else "a local folder with them"
        return ValueError(
            f"{self.scorer}: the weights {name} cannot be loaded: {why} With a network, "
            f"`{self.command}` fetches them (about {self.size}); without, set "
            f"rewards.scorers.{self.scorer}.{self.option} to {local}."
        )

    def unreadable(self, name: str, error: Exception) -> ValueError:
        """The error for weights that a library could not read: it names the damaged file, if any.

        name: a file, a folder, or a hub id, whose files are in the cache.
        """
        from huggingface_hub import try_to_load_from_cache

        local = expanded(name)
        if local.is_dir():
            files = [file for file in sorted(local.iterdir()) if file.is_file()]
        elif local.is_file():
            files = [local]
        else:
            cached = (try_to_load_from_cache(name, file) for file in self.files)
            files = [Path(path) for path in cached if isinstance(path, str)]
        in_words = isinstance(error, OSError | ValueError)
        other = str(error) if in_words else f"it cannot be read, {type(error).__name__}: {error}"
        return self.missing(name, damage(files) or other)

    def locate(self, path: str) -> str:
        """What to load: `path`, or the hub id if it is "".

        Raises ValueError for a missing file, and below a folder that may not be read.
        """
        if not path:
            return self.repo
        local = expanded(path)
        try:
            if local.exists():
                return str(local)
        except OSError as error:
            raise self.missing(path, f"it cannot be read, {error.strerror}.") from error
        if _HUB_ID.fullmatch(path):
            return path
        raise self.missing(path, "no such file or folder.")

    def pretrained(self, load: Callable[[str], T], path: str = "") -> T:
        """`load(folder or hub id)`, such as `AutoProcessor.from_pretrained`.

        Raises ValueError for weights that are missing or damaged.
        """
        name = self.locate(path)
        try:
            return load(name)
        except Exception as error:  # transformers passes on what json, torch or safetensors raise
            raise self.unreadable(name, error) from error

    def reader(self, load: Callable[[str], Any], path: str = "") -> Any:
        """`pretrained` for a tokenizer, or a processor with one.

        Raises ValueError, too, for one without a vocabulary: transformers builds it all the same,
        and every prompt becomes the same tokens.
        """
        name = self.locate(path)
        files = [file for names in VOCABULARIES for file in names if file in self.files]
        reason = f"there is no vocabulary, such as {files[0]}, so the prompts would not be read."
        if Path(name).is_dir() and not has_vocabulary(Path(name)):
            raise self.missing(name, reason)
        loaded = self.pretrained(load, path)
        tokenizer = getattr(loaded, "tokenizer", loaded)
        if tokenizer("a").input_ids == tokenizer("b").input_ids:
            raise self.missing(name, reason)
        return loaded

    def model(self, cls: Any, path: str, dtype: torch.dtype, unused: tuple[str, ...] = ()) -> Any:
        """A transformers model of class `cls`.

        unused: prefixes of parameters that no forward pass reads. Raises ValueError for missing
        weights, and for a checkpoint that lacks another parameter or has one of another shape:
        transformers would fill it with noise, and spoil the scores.
        """
        kwargs = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = self.pretrained(lambda name: cls.from_pretrained(name, **kwargs), path)
        for name, stored, expected in sorted(info["mismatched_keys"])[:1]:
            shapes = f"of shape {tuple(stored)}, where config.json asks for {tuple(expected)}"
            raise self.missing(path or self.repo, f"they have {name} {shapes}")
        parameters = {name for name, _ in model.named_parameters()}
        used = {name for name in parameters if not name.startswith(unused)}
        if absent := sorted(used.intersection(info["missing_keys"])):
            raise self.missing(
                path or self.repo,
                f"they are not those of a {cls.__name__}: {len(absent)} of its {len(parameters)} "
                f"parameters are absent, first {absent[0]}.",
            )
        return model

    def find(self, path: str = "") -> Path:
        """The one file: `path`, or in the folder or repository `path`, or in the published one.

        Raises ValueError if it is missing.
        """
        from huggingface_hub import hf_hub_download

        (file,) = self.files
        name = self.locate(path)
        local = expanded(name)
        if local.is_file():
            return local
        if local.is_dir():
            names = (file, *self.aliases)
            for candidate in names:
                if (local / candidate).is_file():
                    return local / candidate
            raise self.missing(name, f"the folder has no {' or '.join(names)}.")
        try:
            return Path(hf_hub_download(name, file))
        except (OSError, ValueError) as error:
            raise self.missing(f"{name}/{file}", error) from error

    def state(self, path: str = "") -> dict[str, Tensor]:
        """The tensors of the one file, on the CPU. No code in the file is executed.

        Raises ValueError for a file that is missing, damaged or of something else.
        """
        import torch
        from safetensors.torch import load_file

        file = self.find(path)
        try:
            if file.suffix == ".safetensors":
                return load_file(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch executes what is no pickle as one, with any error
            raise self.unreadable(str(file), error) from error
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        if isinstance(state, dict) and all(
            isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
        ):
            return state
        raise self.missing(str(file), "it holds something other than tensors by name.")

    def fill(self, model: torch.nn.Module, state: Mapping[str, Tensor], path: str) -> None:
        """Copy `state` into `model`. Raises ValueError unless names and shapes match exactly."""
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            details = " ".join(str(error).split("\n")[1:3]).strip()
            reason = f"they do not fit {type(model).__name__}: {details}"
            raise self.missing(path or self.repo, reason) from error
