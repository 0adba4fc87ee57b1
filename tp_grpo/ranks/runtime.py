"""The processes of a run and what they share; the one place that builds an `Accelerator`."""

from __future__ import annotations

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

from tp_grpo.ranks import peers, progress, sharding
from tp_grpo.ranks.peers import Peers, own_name

T = TypeVar("T")
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# Process groups, never let go of. Else DDP's C++ part is the last to hold one and takes it down without releasing the
# interpreter's lock, while a thread of the group may be waiting for that lock: once in a while a rank never ends.
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
    ) -> None:
        """timeout_s: how long a rank waits for the others; shard: FSDP2 over what is frozen, see `sharding`."""
        # An fp16 without a GPU is refused, with a better message, when the model's config is read.
        precision = (
            PRECISION.get(dtype, "no") if torch.cuda.is_available() or dtype != "fp16" else "no"
        )
        with patch_environment(
            ACCELERATE_USE_FSDP="false"
        ):  # or accelerate would shard the adapters as well
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision=precision,
                log_with=list(trackers) or None,
                project_config=ProjectConfiguration(
                    project_dir=folder, logging_dir=f"{folder}/tensorboard"
                ),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s))],
            )
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        if self.world_size > 1:
            _GROUPS.append(distributed.group.WORLD)
        self.shard = shard and self.world_size > 1
        self.peers = (
            Peers(self.rank, self.all_gather_object(own_name(self.rank)), timeout_s)
            if self.world_size > 1
            else None
        )

    def seed(self, seed: int) -> None:
        """The same on every rank: initial adapters agree."""
        set_seed(seed)

    def prepare(
        self, transformer: nn.Module, optimizer: Any, trained: list[nn.Parameter]
    ) -> tuple[nn.Module, Any]:
        """The transformer and the optimizer of `trained` as the processes share them."""
        if not self.shard:
            prepared: tuple[nn.Module, Any] = self.accelerator.prepare(transformer, optimizer)
            return prepared
        sharding.shard(transformer, trained, self.device)
        # As for evaluation: autocast alone, for the gradients are averaged by `average_gradients`.
        return self.accelerator.prepare_model(
            transformer, evaluation_mode=True
        ), self.accelerator.prepare(optimizer)

    def average_gradients(self, trained: list[nn.Parameter]) -> None:
        """After an update's last backward pass, which under DDP has done so itself."""
        if self.shard:
            sharding.average_gradients(trained)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of every rank, rank by rank -> (world_size * n, ...)."""
        gathered: Tensor = self.accelerator.gather(rows)
        return gathered

    def all_gather_object(self, item: T) -> list[T]:
        """Every rank's item, rank by rank; any that can be pickled."""
        shared: list[T] = gather_object([item])
        return shared

    def leave(self) -> None:
        """Close the trackers and the group; called where all ranks are, for one that left without would abort."""
        peers.leave()
        self.accelerator.end_training()

    def all_max(self, values: Sequence[float]) -> list[float]:
        """Place by place, the largest of all ranks' values; fp32, cheap enough for every batch."""
        if self.world_size == 1:
            return list(values)
        own = torch.tensor([list(values)], dtype=torch.float32, device=self.device)
        most: list[float] = self.gather(own).max(0).values.tolist()
        return most

    def all_sum(self, counts: dict[str, int]) -> dict[str, int]:
        """Name by name, the sum over all ranks."""
        return dict(sum(map(Counter, self.all_gather_object(counts)), Counter()))

    def on_main(self, work: Callable[[], None]) -> None:
        """Rank 0 works while the others wait; an OSError of its is raised on all ranks alike."""
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
        """Every rank does the work, which holds no collective; what fails on any stops all, naming who failed.

        Raises ValueError for a ValueError of any rank, and on the others for any error of one.
        """
        failed: Exception | None = None
        try:
            done = work()
        except Exception as error:
            failed = error
        if self.peers is None:
            if failed:
                raise failed
            return done
        said = self.all_gather_object(_words(failed))
        if failed and not isinstance(failed, ValueError):
            raise failed
        if any(said):
            raise ValueError(_blame(said, self.peers.names)) from failed
        return done

    def synchronize(self) -> None:
        """Wait for this thread's own work on the device; what scorers do on streams of theirs goes on."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def say(self, text: str) -> None:
        """A line on the terminal, from the main process."""
        if self.is_main:
            progress.say(text)

    def epochs(self, start: int, stop: int) -> progress.Bar[int]:
        """`progress.epochs` on the main process; the others say nothing."""
        return progress.epochs(start, stop) if self.is_main else progress.Silent(range(start, stop))

    def bar(self, items: Sequence[T], name: str, **options: Any) -> progress.Bar[T]:
        """`progress.bar` on the main process; the others say nothing."""
        return progress.bar(items, name, **options) if self.is_main else progress.Silent(items)


def close_group() -> None:
    """End this process's group, if any: a process that exits with it open aborts its machine."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _words(error: Exception | None) -> str:
    """Of an error, for the other ranks; empty without one."""
    if error is None:
        return ""
    return (
        str(error) or "ValueError"
        if isinstance(error, ValueError)
        else f"{type(error).__name__}: {error}"
    )


def _blame(said: list[str], names: list[str]) -> str:
    """What each rank said in its name; what all say alike is said once."""
    if len(set(said)) == 1:
        return said[0]
    return "\n".join(f"{name}: {words}" for name, words in zip(names, said, strict=True) if words)
