"""The processes of a run and what they share; the one place that builds an `Accelerator`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from torch import Tensor
from tqdm import tqdm

T = TypeVar("T")
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Runtime:
    """One process of `world_size`, on its device."""

    def __init__(self, dtype: str, trackers: Iterable[str], folder: str) -> None:
        # An fp16 without a GPU is refused, with a better message, when the model's config is read.
        precision = PRECISION.get(dtype, "no") if torch.cuda.is_available() or dtype != "fp16" else "no"
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(project_dir=folder, logging_dir=f"{folder}/tensorboard"),
        )
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process

    def seed(self, seed: int) -> None:
        """The same on every rank: initial adapters agree."""
        set_seed(seed)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of every rank, rank by rank -> (world_size * n, ...)."""
        gathered: Tensor = self.accelerator.gather(rows)
        return gathered

    def share(self, item: T) -> list[T]:
        """Every rank's item, rank by rank; any that can be pickled."""
        shared: list[T] = gather_object([item])
        return shared

    def say(self, text: str) -> None:
        """A line on the terminal, from the main process."""
        if self.is_main:
            tqdm.write(text)

    def bar(self, items: Iterable[Any], name: str) -> Any:
        """A progress bar over `items` on the main process; nothing where the output is no terminal."""
        return tqdm(items, desc=name, leave=False, disable=None if self.is_main else True, dynamic_ncols=True)
