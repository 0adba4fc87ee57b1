"""Training runs of the embedded model, each in a process of its own, and what they leave."""

from __future__ import annotations

import importlib
import json
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict
from safetensors.torch import load_file
from torch import Tensor

from gpu_jobs.case import Child
from tp_grpo.observe.tracking import path_of
from tp_grpo.trainer import Trainer

SHORT = {"epochs": 1, "eval__prompts": 2}
LIMIT = 240  # seconds of a run
CPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
FULL_FP32 = {"NVIDIA_TF32_OVERRIDE": "0"}  # convolutions would use TF32


class Run:
    """A finished run: its folder, and the seconds that it took with its start."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.epochs = [line for line in lines if line["kind"] == "train"]

    def ladder(self, epoch: int = 1) -> Tensor:
        """The rewards (N, J) of an epoch."""
        return load_file(path_of(self.folder / "ladders", epoch))["reward"]


def config_of(algorithm: str, recipe: str, **fields: Any) -> ConfigDict:
    """A recipe of the embedded model, with fields by dotted name (__ for the dot)."""
    config: ConfigDict = importlib.import_module(f"config.{algorithm}").get_config(recipe)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    config.tracking.trackers = ()
    return config


class Start:
    """`shapes_smoke` of an algorithm by `ranks` processes, which share the GPU if there is one."""

    def __init__(
        self,
        algorithm: str,
        *,
        ranks: int = 1,
        environment: Mapping[str, str] = MappingProxyType({}),
        **fields: Any,
    ) -> None:
        self.folder, self.begun = Path(tempfile.mkdtemp()), time.perf_counter()
        place = {"output_dir": str(self.folder), "run_name": "run"}
        shared = {"runtime__share_gpus": ranks > 1}
        config = config_of(algorithm, "shapes_smoke", **SHORT, **place, **shared, **fields)

        def work() -> None:
            Trainer(config).run()

        worlds = _worlds(ranks) if ranks > 1 else [{}]
        self.ranks = [
            Child(work, self.folder / f"rank-{number}.log", {**environment, **world})
            for number, world in enumerate(worlds)
        ]

    def finish(self) -> Run:
        """Wait for it. Raises CaseError if a rank fails."""
        for rank in self.ranks:
            rank.wait(LIMIT)
        return Run(self.folder / "run", time.perf_counter() - self.begun)


def _worlds(ranks: int) -> list[dict[str, str]]:
    """The variables by which ranks of this machine find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)} | place
    return [world | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]
