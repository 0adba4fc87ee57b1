"""The tensors of a checkpoint's files against those that its classes have, before weights load.

A tensor that a file lacks would get random values, and each run would draw other images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from transformers.utils import logging

from tp_grpo.models import checkpoint_files

META = torch.device("meta")
# The encoders' hidden states are read, never the words or the images that they could be asked for.
UNREAD = re.compile(r"(^|\.)(lm_head|visual)\.")
ADAPTER = re.compile(r"\.(base_layer|lora_[AB])\.")  # how peft names what it wraps
BATCH_NORM = ("running_mean", "running_var")  # the only buffers that nothing could compute
SHOWN = 3


def check(folder: Path) -> None:
    """Raises ValueError for a part that lacks tensors of its class, or has them in other shapes."""
    for name, (library, class_name) in checkpoint_files.components(folder).items():
        if library not in ("diffusers", "transformers") or not checkpoint_files.has_weights(name):
            continue
        part, source = folder / name, diffusers if library == "diffusers" else transformers
        if not hasattr(source, class_name):
            version = f"{library} {source.__version__}"
            raise ValueError(f"model.path: {part} is a {class_name}, which {version} lacks")
        _check_part(part, getattr(source, class_name), library)


def _check_part(part: Path, kind: Any, library: str) -> None:
    if "quantization_config" in checkpoint_files.read_json(part / "config.json"):
        return  # its names depend on the library that quantised it
    shapes: dict[str, list[int]] = {}
    for file in checkpoint_files.weight_files(part):
        shapes |= checkpoint_files.shapes(file)
    if wrapped := next(filter(ADAPTER.search, sorted(shapes)), None):
        raise ValueError(
            f"model.path: {part} was saved with a LoRA still loaded ({wrapped}): load both again, "
            "call pipeline.fuse_lora() to keep the LoRA in the weights, then "
            "pipeline.unload_lora_weights(), and save it again"
        )
    compare = _diffusers if library == "diffusers" else _transformers
    held = {name: torch.empty(shape, device=META) for name, shape in shapes.items()}
    try:
        missing, misshapen = compare(kind, part, held)
    except Exception as error:  # a class may do anything with a config that it did not write
        raise ValueError(
            f"model.path: {part}/config.json describes no {kind.__name__}: {error}"
        ) from error
    missing = [name for name in missing if not UNREAD.search(name)]
    if names := missing or misshapen:
        problem = "lacks" if missing else "has in another shape"
        shown = ", ".join(names[:SHOWN]) + (", .." if len(names) > SHOWN else "")
        raise ValueError(
            f"model.path: {part} {problem} {len(names)} of a {kind.__name__}'s tensors: {shown}; "
            "fetch the folder again, or save the part again with its own class and config"
        )


def _diffusers(kind: Any, part: Path, held: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """The names of tensors that are missing, and of those in other shapes."""
    with META:
        empty = kind.from_config(kind.load_config(part))
    empty._fix_state_dict_keys_on_load(held)  # of older layouts, as loading does
    needed: Mapping[str, Tensor] = {
        **dict(empty.named_parameters()),
        **{name: value for name, value in empty.named_buffers() if name.endswith(BATCH_NORM)},
    }
    misshapen = [n for n in needed if n in held and held[n].shape != needed[n].shape]
    return [name for name in needed if name not in held], misshapen


def _transformers(kind: Any, part: Path, held: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """As `_diffusers`, by loading tensors without values: names differ by layout, some are tied."""
    config = kind.config_class.from_pretrained(part)
    with _silent():
        _, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=held,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return sorted(found["missing_keys"]), sorted(entry[0] for entry in found["mismatched_keys"])


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, transformers neither reports nor shows a progress bar."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
