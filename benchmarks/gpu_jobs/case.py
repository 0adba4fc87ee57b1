"""A case of a job: what it measures, in a process of its own with a limit of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import torch

Figures = dict[str, float | str | None]
"""A row of a table: column, with its unit -> a number, words, or None for an empty cell."""


@dataclass(frozen=True)
class Case:
    """seconds: how long it takes on an 80 GB GPU of 400 TFLOP/s, as estimated beforehand."""

    name: str
    seconds: float
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Job:
    """name: for --only. title: over its table. cases: its cases, at tiny size or at full."""

    name: str
    title: str
    cases: Callable[[bool], list[Case]]


class CaseError(RuntimeError):
    """A case that ended without figures; the message is its last line."""


class Child:
    """`work` in a forked process. Do not create one where the GPU has been used already."""

    def __init__(
        self,
        work: Callable[[], object],
        log: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
        *,
        leads: bool = False,
    ) -> None:
        """log: takes what it prints; environment: variables of its own.

        leads: whether the processes that it starts are stopped with it.
        """
        self.log, self.leads, self.pid = log, leads, os.fork()
        if self.pid == 0:
            self._work(work, environment)

    def wait(self, limit: float) -> None:
        """Raises CaseError with its last words if it fails, or is not done in `limit` seconds."""
        end = time.monotonic() + limit
        ended = status = 0
        while not ended and time.monotonic() < end:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0 if ended else 0.02)
        self._stop(alive=not ended)
        if not ended:
            raise CaseError(f"stopped after {limit:.0f} s")
        if code := os.waitstatus_to_exitcode(status):
            text = self.log.read_text(errors="replace")
            print(text)  # a case's log has those of its runs
            last = text.strip().splitlines()[-1:] or ["it printed nothing"]
            how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise CaseError(f"{how}: {last[0]}")

    def _stop(self, *, alive: bool) -> None:
        """Kill it if it is alive, and if it leads, the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            if self.leads:
                os.killpg(self.pid, signal.SIGKILL)
            elif alive:
                os.kill(self.pid, signal.SIGKILL)
        if alive:
            os.waitpid(self.pid, 0)

    def _work(self, work: Callable[[], object], environment: Mapping[str, str]) -> NoReturn:
        code = 1
        try:
            if self.leads:
                os.setpgid(0, 0)
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for number in (1, 2):
                os.dup2(out, number)
            sys.stdout = os.fdopen(1, "w", closefd=False)  # a test's may lead elsewhere
            sys.stderr = os.fdopen(2, "w", closefd=False)
            os.environ.update(environment)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what the parent has set up is the parent's to take down


def run(case: Case, folder: Path, limit: float) -> Figures:
    """Its figures, and `on`, the device and torch's version; its words go to folder/NAME.log.

    Raises CaseError as `Child.wait` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in case.name)
    results = folder / f"{name}.json"
    results.unlink(missing_ok=True)

    def measure() -> None:
        figures = case.measure()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        results.write_text(json.dumps(figures | {"on": f"{device}, torch {torch.__version__}"}))

    Child(measure, folder / f"{name}.log", leads=True).wait(limit)
    figures: Figures = json.loads(results.read_text())
    return figures
