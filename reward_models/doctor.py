"""Is each scorer installed, are its weights here, does it score golden images in a sane order, and what does it cost?

    python -m reward_models.doctor                    every registered scorer
    python -m reward_models.doctor pickscore mine.module:Scorer
    python -m reward_models.doctor pickscore --set pickscore.path=/models/PickScore_v1

Each scorer runs in a process of its own, so that its memory is its own and a crash is its own. Nothing is downloaded.
The exit code is 1 when a scorer fails, or one that was named is missing something.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from reward_models import Scorer, build, factory, names, target
from reward_models.check import Case, Check

OK, MISSING, FAILED = "ok", "missing", "FAILED"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Cost:
    """seconds an image in a batch of the golden ones, once warm; MB of the loaded scorer, and of an image on top."""

    seconds: float
    loaded: float
    image: float


@dataclass(frozen=True)
class Report:
    """What was found of one scorer. scores: by golden image; mend: commands, or words, that would help."""

    name: str
    state: str
    why: str = ""
    mend: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None


def examine(name: str, where: str, options: Mapping[str, Any]) -> Report:
    """Look at the scorer `where`, a "module:callable", built with the options, and those of its own check."""
    try:
        check = check_of(where)
        if missing := _missing(name, check, options):
            return missing
        cases = check.cases()
        scores, cost = _measure(where, dict(check.options) | dict(options), cases)
    except Exception as error:
        return Report(name, FAILED, f"{type(error).__name__}: {error}")
    wrong = out_of_order(cases, scores)
    by_name = {case.name: float(score) for case, score in zip(cases, scores, strict=True)}
    return Report(name, FAILED if wrong else OK, wrong, scores=by_name, cost=cost)


def check_of(where: str) -> Check:
    """What the scorer `where` declares."""
    check: Check = getattr(factory(where), "doctor", Check())
    return check


def out_of_order(cases: Sequence[Case], scores: np.ndarray) -> str:
    """In words, what is wrong with the scores of the cases; "" when each is finite and above those of lower rank."""
    pairs = list(zip(cases, scores, strict=True))
    for case, score in pairs:
        if not np.isfinite(score):
            return f"{case.name} got no score"
    for better, high in pairs:
        for worse, low in pairs:
            if better.rank > worse.rank and not high > low:
                return f"{better.name} must score more than {worse.name}, but {high:.3g} is not above {low:.3g}"
    return ""


def _missing(name: str, check: Check, options: Mapping[str, Any]) -> Report | None:
    packages = [package for package in check.packages if importlib.util.find_spec(package) is None]
    if packages:
        wanted = f'"tp_grpo[{check.extra}]"' if check.extra else " ".join(packages)
        why = f"not installed: {', '.join(packages)}"
        return Report(name, MISSING, why, (f"pip install {wanted}",))
    if options:  # they name a local folder or a server
        return None
    if check.needs:
        return Report(name, MISSING, check.needs, (f"try it with --set {name}.OPTION=VALUE",))
    absent = [source for source in check.weights if not source.in_cache()]
    if absent:
        sizes = ", ".join(f"{source.repo} ({source.size})" for source in absent)
        mend = (*(source.command for source in absent), f"or --set {name}.path=FOLDER")
        return Report(name, MISSING, f"weights not in the cache: {sizes}", mend)
    return None


def _measure(where: str, options: dict[str, Any], cases: Sequence[Case]) -> tuple[np.ndarray, Cost]:
    """The cases' scores, and the cost of a second pass."""
    process = psutil.Process()
    before = process.memory_info().rss
    scorer = build(where, **options)
    images = np.stack([case.image for case in cases])
    batch = (images, [case.prompt for case in cases], [case.metadata for case in cases])
    cuda = _to_gpu(scorer)
    scores = scorer(*batch).score
    if cuda:
        loaded, base = cuda.memory_allocated(), cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
    else:
        base = process.memory_info().rss
        loaded = base - before
    with _Peak(process) as peak:
        start = time.perf_counter()
        scorer(*batch)
        seconds = time.perf_counter() - start
    highest = cuda.max_memory_allocated() if cuda else peak.bytes
    if hasattr(scorer, "close"):
        scorer.close()
    n = len(cases)
    return np.asarray(scores), Cost(
        seconds / n, loaded / MEGABYTE, max(0, highest - base) / n / MEGABYTE
    )


def _to_gpu(scorer: Scorer) -> Any:
    """torch.cuda, with the scorer's model moved there; None where there is no model or no GPU."""
    if not hasattr(scorer, "to"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    scorer.to("cuda")
    return torch.cuda


class _Peak:
    """The process' largest memory while inside, looked at every 5 ms."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = 0
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            if self._done.wait(0.005):
                return

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def table(reports: Iterable[Report]) -> str:
    """The reports as lines of text."""
    reports = list(reports)
    wide = max([len(report.name) for report in reports] + [len("scorer")])
    lines = [f"{'scorer':{wide}}  state    s/image  MB loaded  MB/image  golden images"]
    for report in reports:
        cost = report.cost
        costs = (
            f"{cost.seconds:7.3f}  {cost.loaded:9.0f}  {cost.image:8.1f}"
            if cost
            else f"{'':7}  {'':9}  {'':8}"
        )
        scores = ", ".join(f"{name} {score:.3f}" for name, score in report.scores.items())
        lines.append(f"{report.name:{wide}}  {report.state:7}  {costs}  {scores}".rstrip())
        lines += [f"{'':{wide}}  {text}" for text in (report.why, *report.mend) if text]
    return "\n".join(lines)


def exit_code(reports: Iterable[Report], named: bool) -> int:
    """1 when a scorer fails, or one that was asked for by name is not ok."""
    return int(any(report.state == FAILED or (named and report.state != OK) for report in reports))


def _options(settings: Iterable[str], asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.OPTION=VALUE` by name; a value is JSON, or else a string. Raises ValueError for one that is not so."""
    options: dict[str, dict[str, Any]] = {name: {} for name in asked}
    for setting in settings:
        key, _, text = setting.partition("=")
        name, _, option = key.rpartition(".")
        if not text or name not in options:
            raise ValueError(
                f"--set {setting}: not NAME.OPTION=VALUE, NAME one of {', '.join(options)}"
            )
        try:
            options[name][option] = json.loads(text)
        except json.JSONDecodeError:
            options[name][option] = text
    return options


def _examine_apart(name: str, options: Mapping[str, Any]) -> Report:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        try:
            return apart.submit(examine, name, target(name), options).result()
        except BrokenProcessPool:
            return Report(
                name, FAILED, "its process died: of memory, or in a library's native code"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m reward_models.doctor", description=summary)
    parser.add_argument(
        "names", nargs="*", help="registered scorers or module:callable; default: all registered"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME.OPTION=VALUE", help="of that scorer"
    )
    given = parser.parse_args(arguments)
    asked = list(dict.fromkeys(given.names)) or names()
    try:
        options = _options(given.set, asked)
        for name in asked:
            target(name)
    except ValueError as error:
        parser.error(str(error))
    os.environ["HF_HUB_OFFLINE"] = "1"  # the children inherit it
    print(
        f"Python {platform.python_version()} on {platform.system()}; nothing is downloaded\n",
        flush=True,
    )
    reports = [_examine_apart(name, options[name]) for name in asked]
    print(table(reports))
    return exit_code(reports, named=bool(given.names))


if __name__ == "__main__":
    sys.exit(main())
