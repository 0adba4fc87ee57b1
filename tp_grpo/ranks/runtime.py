"""The processes of a run and what they share; the one place that builds an `Accelerator`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    patch_environment,
    set_seed,
)
from torch import Tensor, distributed, nn

from tp_grpo.ranks import environment, peers, progress, sharding
from tp_grpo.ranks.peers import Peers, rank_name

T = TypeVar("T")
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# Process groups are kept alive. Otherwise DDP's C++ part holds the last reference and destroys the
# group while it holds the GIL, for which a thread of the group may wait: now and then a rank hangs.
_GROUPS: list[Any] = []


class Runtime:
    """One process of `world_size`, on its device."""

    def __init__(
        self,
        dtype: str,
        trackers: Iterable[str],
        folder: str,
        *,
        timeout_s: float = 1800,
        shard: bool = False,
        share_gpus: bool = False,
    ) -> None:
        """timeout_s: how long a rank waits for the others; shard: FSDP2, see `sharding`.

        share_gpus: several ranks may be on one GPU.
        Raises ValueError for an environment that asks for what only a config may, and for ranks
        that share both a GPU and the weights.
        """
        if shard and share_gpus:
            raise ValueError("runtime.share_gpus: FSDP2 needs a GPU for each rank; launch with ddp")
        environment.check(os.environ)
        environment.name_the_user()
        environment.full_precision()
        cuda = torch.cuda.is_available()
        # fp16 without a GPU is refused, with a better message, when the model's config is read.
        precision = PRECISION.get(dtype, "no") if cuda or dtype != "fp16" else "no"
        self.share_gpus = share_gpus
        backend = "gloo" if share_gpus else "nccl"  # which refuses ranks that share a GPU
        group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s))
        with patch_environment(**environment.FOR_ACCELERATE):
            self.accelerator = Accelerator(
                cpu=not cuda,
                mixed_precision=precision,
                log_with=list(trackers) or None,
                project_config=ProjectConfiguration(folder, logging_dir=f"{folder}/tensorboard"),
                kwargs_handlers=[group],
            )
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.shard = shard and self.world_size > 1
        self.peers: Peers | None = None
        if self.world_size > 1:
            _GROUPS.append(distributed.group.WORLD)
            names = self.all_gather_object(rank_name(self.rank))
            self.peers = Peers(self.rank, names, timeout_s)

    def seed(self, seed: int) -> None:
        """The same on every rank, so that initial adapters agree."""
        set_seed(seed)

    def prepare(
        self, transformer: nn.Module, optimizer: Any, trained: list[nn.Parameter]
    ) -> tuple[nn.Module, Any]:
        """The transformer and the optimizer of `trained`, ready for several processes."""
        if not self.shard:
            # DDP takes the module's own device, where accelerate would take the rank's number.
            variables = {"ACCELERATE_BYPASS_DEVICE_MAP": "true"} if self.share_gpus else {}
            with patch_environment(**variables):
                prepared: tuple[nn.Module, Any] = self.accelerator.prepare(transformer, optimizer)
            return prepared
        sharding.shard(transformer, trained, self.device)
        # evaluation_mode: autocast alone, since `average_gradients` averages the gradients.
        model = self.accelerator.prepare_model(transformer, evaluation_mode=True)
        return model, self.accelerator.prepare(optimizer)

    def average_gradients(self, trained: list[nn.Parameter]) -> None:
        """Called after an update's last backward pass; DDP has done it in that pass."""
        if self.shard:
            sharding.average_gradients(trained)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of every rank, rank by rank -> (world_size * n, ...)."""
        gathered: Tensor = self.accelerator.gather(rows)
        return gathered

    def all_gather_object(self, item: T) -> list[T]:
        """Every rank's item, rank by rank; anything that can be pickled."""
        items: list[T] = gather_object([item])
        return items

    def leave(self) -> None:
        """Close the trackers and the group; all ranks call it, or the others would abort."""
        peers.leave()
        self.accelerator.end_training()

    def all_max(self, values: Sequence[float]) -> list[float]:
        """Place by place, the largest of all ranks' values; fp32, cheap enough for every batch."""
        if self.world_size == 1:
            return list(values)
        row = torch.tensor([list(values)], dtype=torch.float32, device=self.device)
        largest: list[float] = self.gather(row).max(0).values.tolist()
        return largest

    def all_sum(self, counts: dict[str, int]) -> dict[str, int]:
        """Name by name, the sum over all ranks."""
        return dict(sum(map(Counter, self.all_gather_object(counts)), Counter()))

    def on_main(self, work: Callable[[], None]) -> None:
        """Rank 0 works while the others wait; its OSError is raised on all ranks alike."""
        error: OSError | None = None
        if self.is_main:
            try:
                work()
            except OSError as raised:
                error = raised
        error = self.all_gather_object(error)[0]
        if error is not None:
            raise error

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` (no collectives) on every rank; if one fails, all raise and name it.

        Raises ValueError, but the error itself where that was of another type.
        """
        if self.peers is None:
            return work()
        failure: Exception | None = None
        try:
            done = work()
        except Exception as error:
            failure = error
        words = self.all_gather_object(_words(failure))
        if failure and not isinstance(failure, ValueError):
            raise failure
        if any(words):
            raise ValueError(_blame(words, self.peers.names)) from failure
        return done

    def synchronize(self) -> None:
        """Wait for this thread's work on the device, not for scorers on streams of their own."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def say(self, text: str) -> None:
        """A line on the terminal, from the main process."""
        if self.is_main:
            progress.say(text)

    def epochs(self, start: int, stop: int) -> progress.Bar[int]:
        """`progress.epochs` on the main process; silent on the others."""
        return progress.epochs(start, stop) if self.is_main else progress.silent(range(start, stop))

    def bar(self, items: Sequence[T], name: str, **options: Any) -> progress.Bar[T]:
        """`progress.bar` on the main process; silent on the others."""
        return progress.bar(items, name, **options) if self.is_main else progress.silent(items)


def close_group() -> None:
    """Close this process's group, if it has one; exiting with it open would abort."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _words(error: Exception | None) -> str:
    """An error for the other ranks; empty for None."""
    if isinstance(error, ValueError):
        return str(error) or "ValueError"
    return f"{type(error).__name__}: {error}" if error else ""


def _blame(words: list[str], names: list[str]) -> str:
    """Each rank's message after its name; one that all share appears once."""
    if len(set(words)) == 1:
        return words[0]
    return "\n".join(f"{name}: {text}" for name, text in zip(names, words, strict=True) if text)
