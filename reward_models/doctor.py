"""Is each scorer installed, are its weights here, are its scores sane, and what do they cost?

    python -m reward_models.doctor                    every registered scorer
    python -m reward_models.doctor pickscore mine.module:Scorer
    python -m reward_models.doctor pickscore --set pickscore.path=/models/PickScore_v1

Each scorer runs in a process of its own, so that its memory can be measured and a crash ends only
that process. Nothing is downloaded. The exit code is 1 if a scorer fails, or if one that was named
misses something.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from reward_models import Scorer, Scores, build, compares, factory, names, target, terminal
from reward_models.check import Case, Check

# As Python writes them; JSON writes them otherwise.
WORDS = {"True": True, "False": False, "None": None}
OK, MISSING, FAILED = "ok", "missing", "FAILED"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Cost:
    """seconds: per image, in a second batch. loaded: MB of the scorer. image: MB per image."""

    seconds: float
    loaded: float
    image: float


@dataclass(frozen=True)
class Report:
    """scores: by golden image. advice: commands, or words, that would help."""

    name: str
    state: str
    why: str = ""
    advice: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None


def examine(name: str, where: str, options: Mapping[str, Any]) -> Report:
    """Examine the scorer `where`, a "module:callable", built with these options."""
    try:
        check = check_of(where)
        if missing := _missing(name, check, options):
            return missing
        cases = check.cases()
        scores, cost = _measure(where, {**check.options, **options}, cases)
    except Exception as error:
        return Report(name, FAILED, f"{type(error).__name__}: {error}")
    wrong = out_of_order(cases, scores.score)
    why = "; ".join(part for part in (wrong, scores.reason) if part)
    by_name = {case.name: float(score) for case, score in zip(cases, scores.score, strict=True)}
    return Report(name, FAILED if wrong else OK, why, scores=by_name, cost=cost)


def check_of(where: str) -> Check:
    """What the scorer `where` declares."""
    check: Check = getattr(factory(where), "doctor", Check())
    return check


def out_of_order(cases: Sequence[Case], scores: np.ndarray) -> str:
    """What is wrong with the scores; "" if each is finite and above those of lower rank."""
    pairs = list(zip(cases, scores, strict=True))
    for case, score in pairs:
        if not np.isfinite(score):
            return f"{case.name} got no score"
    for better, high in pairs:
        for worse, low in pairs:
            if better.rank > worse.rank and not high > low:
                scored = f"but {high:.3g} is not above {low:.3g}"
                return f"{better.name} must score more than {worse.name}, {scored}"
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
        local = " ".join(f"--set {name}.{source.option}={source.local}" for source in absent)
        advice = (*(source.command for source in absent), f"or with local copies: {local}")
        return Report(name, MISSING, f"weights not in the cache: {sizes}", advice)
    return None


def _measure(where: str, options: dict[str, Any], cases: Sequence[Case]) -> tuple[Scores, Cost]:
    """The scores of the cases, and the cost of scoring them a second time."""
    process = psutil.Process()
    before = process.memory_info().rss
    scorer = build(where, **options)
    images, n = np.stack([case.image for case in cases]), len(cases)
    batch: tuple[Any, ...] = images, [c.prompt for c in cases], [c.metadata for c in cases]
    if compares(scorer):  # the golden images are one group
        batch += (np.zeros(n, np.int64),)
    cuda = _to_gpu(scorer)
    scores = Scores.read(scorer(*batch), n)
    base = cuda.memory_allocated() if cuda else process.memory_info().rss
    loaded = base if cuda else base - before
    if cuda:
        cuda.reset_peak_memory_stats()
    with _memory(process) as samples:
        start = time.perf_counter()
        scorer(*batch)
        seconds = time.perf_counter() - start
    peak = cuda.max_memory_allocated() if cuda else max(samples)
    if hasattr(scorer, "close"):
        scorer.close()
    return scores, Cost(seconds / n, loaded / MEGABYTE, max(0, peak - base) / n / MEGABYTE)


def _to_gpu(scorer: Scorer) -> Any:
    """Move the scorer's model to the GPU. Returns torch.cuda, or None without a model or a GPU."""
    if not hasattr(scorer, "to"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    scorer.to("cuda")
    return torch.cuda


@contextmanager
def _memory(process: psutil.Process) -> Iterator[list[int]]:
    """The memory of the process in bytes, sampled every 5 ms by a thread."""
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        samples.append(process.memory_info().rss)
        while not done.wait(0.005):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def table(reports: Sequence[Report]) -> str:
    """The reports as lines of text."""
    wide = max(len(name) for name in ("scorer", *(report.name for report in reports)))
    lines = [f"{'scorer':{wide}}  state    s/image  MB loaded  MB/image  golden images"]
    for report in reports:
        numbers = ""
        if cost := report.cost:
            numbers = f"{cost.seconds:7.3f}  {cost.loaded:9.0f}  {cost.image:8.1f}"
        scores = ", ".join(f"{name} {score:.3f}" for name, score in report.scores.items())
        lines.append(f"{report.name:{wide}}  {report.state:7}  {numbers:28}  {scores}".rstrip())
        lines += [f"{'':{wide}}  {text}" for text in (report.why, *report.advice) if text]
    return "\n".join(lines)


def exit_code(reports: Iterable[Report], named: bool) -> int:
    """1 if a scorer failed, or if one that was asked for by name is not ok."""
    return int(any(report.state == FAILED or (named and report.state != OK) for report in reports))


def _options(settings: Iterable[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {option: value}} of NAME.OPTION=VALUE; a value that is not JSON is a string."""
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, _, text = setting.partition("=")
        name, _, option = key.rpartition(".")
        if not text or name not in options:
            known = ", ".join(options)
            raise ValueError(f"--set {setting}: not NAME.OPTION=VALUE, NAME one of {known}")
        try:
            options[name][option] = json.loads(text)
        except json.JSONDecodeError:
            options[name][option] = WORDS.get(text, text)
    return options


def _examine_apart(name: str, options: Mapping[str, Any]) -> Report:
    """`examine` in another process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(examine, name, target(name), options).result()
        except BrokenProcessPool:
            return Report(name, FAILED, "its process died: of memory, or in native code")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    terminal.accept_any_text()
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m reward_models.doctor", description=summary)
    scorers = "registered scorers or module:callable; default: all registered"
    parser.add_argument("names", nargs="*", help=scorers)
    option = "an option of that scorer"
    parser.add_argument("--set", action="append", metavar="NAME.OPTION=VALUE", help=option)
    args = parser.parse_args(arguments)
    asked = list(dict.fromkeys(args.names)) or names()
    try:
        options = _options(args.set or [], asked)
        for name in asked:
            target(name)
    except ValueError as error:
        parser.error(str(error))
    os.environ["HF_HUB_OFFLINE"] = "1"  # the children inherit it
    system = f"Python {platform.python_version()} on {platform.system()}"
    print(f"{system}; nothing is downloaded\n", flush=True)
    reports = [_examine_apart(name, options[name]) for name in asked]
    print(table(reports))
    return exit_code(reports, named=bool(args.names))


if __name__ == "__main__":
    sys.exit(main())
