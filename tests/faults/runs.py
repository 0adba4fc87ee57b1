"""scripts/train.py in processes forked after the imports; each announces a moment of its run."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tp_grpo.store.checkpoint import WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=config/tp_grpo.py:shapes_smoke"
SHORT = {
    "epochs": 3,
    "sample.steps": 3,
    "sample.group_size": 2,
    "sample.batch_size": 2,
    "eval.every": 3,
    "eval.prompts": 2,
    "eval.steps": 2,
    "tracking.images_every": 3,
    "checkpoint.keep_every": 100,
}
PAIR = {"sample.batch_size": 1}  # for two ranks
SLOW_FLUSH = 0.02  # seconds added to every flush, so that there is a midst of writing
DEADLINE = 120  # seconds for any process

# Where a process announces itself: the function that is then called.
PHASES = {
    "load": "tp_grpo.models.load",
    "sample": "tp_grpo.trainer.roll_out",
    "score": "tp_grpo.rewards.scorer_thread.ScorerThread._score",
    "update": "tp_grpo.train.update.Updater.step",
    "evaluate": "tp_grpo.evaluate.held_out.ode_images",
    "write": "tp_grpo.store.checkpoint.Checkpoints.save",
    "rename": "tp_grpo.store.checkpoint.Checkpoints.tidy",
}


@dataclass
class Process:
    """A running process. `reached` waits for its moment; `wait` gives exit code and output."""

    process: Any
    heard: Connection
    log: Path
    killed: bool = field(default=False)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def reached(self) -> bool:
        """True at the moment; False when the process ended without coming to it."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self.heard.poll(0.01):
                try:
                    return bool(self.heard.recv())
                except EOFError:
                    return False
        raise TimeoutError(self.log.read_text())

    def wait(self) -> tuple[int, str]:
        self.process.join(DEADLINE)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode, self.log.read_text()


def start(
    folder: Path,
    name: str,
    fields: Mapping[str, Any] | None = None,
    *,
    at: tuple[str, int] | None = None,
    ranks: int = 1,
    spoil: Mapping[int, str] | None = None,
    config: str = CONFIG,
) -> list[Process]:
    """A process a rank; `at`: (phase, how many times it must have begun) is announced by each.

    spoil: rank -> "module.function" that is called before the run.
    """
    chosen = {"output_dir": folder, "run_name": name, **SHORT, **(fields or {})}
    arguments = [config, *(f"--config.{field}={value}" for field, value in chosen.items())]
    environments = _environments(ranks)
    return [
        _start(
            arguments,
            environment,
            folder / f"{name}-{rank}-{time.monotonic_ns()}.log",
            at,
            (spoil or {}).get(rank),
        )
        for rank, environment in enumerate(environments)
    ]


def finish(
    folder: Path, name: str, fields: Mapping[str, Any] | None = None, *, ranks: int = 1
) -> str:
    """A run to its end; returns what rank 0 printed."""
    ended = [process.wait() for process in start(folder, name, fields, ranks=ranks)]
    assert all(code == 0 for code, _ in ended), "\n".join(output for _, output in ended)
    return ended[0][1]


def assert_same_weights(hurt: Path, whole: Path) -> None:
    """The trained ones and their average at the end, bit for bit."""
    for name in (f"checkpoints/epoch-3/{WEIGHTS}", "adapter/pytorch_lora_weights.safetensors"):
        tensors, expected = load_file(hurt / name), load_file(whole / name)
        assert tensors.keys() == expected.keys()
        assert all(tensors[key].equal(expected[key]) for key in expected), f"{hurt / name} differs"


def _environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "ACCELERATE_USE_CPU": "true",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _start(
    arguments: Sequence[str],
    environment: dict[str, str],
    log: Path,
    at: tuple[str, int] | None,
    spoil: str | None,
) -> Process:
    heard, tell = multiprocessing.Pipe(duplex=False)
    process = fork(_train, arguments, environment, log, tell, at, spoil)
    tell.close()
    return Process(process, heard, log)


def fork(work: Callable[..., None], *arguments: Any) -> Any:
    """A process that has imported `warm` already."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def _train(
    arguments: Sequence[str],
    environment: dict[str, str],
    log: Path,
    tell: Connection,
    at: tuple[str, int] | None,
    spoil: str | None,
) -> None:
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(ROOT)
    if at:
        _announce(at, tell)
    sys.path.insert(0, str(ROOT / "scripts"))
    sys.argv = ["scripts/train.py", *arguments]
    if spoil:
        module, _, name = spoil.rpartition(".")
        getattr(importlib.import_module(module), name)()
    runpy.run_path("scripts/train.py", run_name="__main__")


def _announce(at: tuple[str, int], tell: Connection) -> None:
    """Wrap the phase's function to tell when it begins for the nth time, and flush slowly."""
    phase, nth = at
    calls = 0

    def before() -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            tell.send(True)

    wrap(PHASES[phase], before)
    wrap("tp_grpo.store.files.flush", lambda: time.sleep(SLOW_FLUSH))


def wrap(path: str, before: Callable[[], None]) -> None:
    """From now on `before` is called before the function or method."""
    owner, name = _owner(path)
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        before()
        return function(*arguments, **options)

    setattr(owner, name, wrapped)


def _owner(path: str) -> tuple[Any, str]:
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        owner: Any = sys.modules.get(".".join(parts[:cut]))
        if owner is not None:
            for part in parts[cut:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1]
    raise ValueError(path)
