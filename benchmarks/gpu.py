"""Every measurement that needs a GPU: python benchmarks/gpu.py --minutes 8 --out FOLDER

Jobs in order of worth, each of cases in processes of their own; weights are random ones of the
full sizes, so that nothing is downloaded. Every figure is written to FOLDER/results.jsonl and
FOLDER/report.md as soon as it is measured; what did not fit or failed is said at the end. A second
session adds to the first. --list shows the jobs with their estimated seconds, --only NAME runs
some, and --tiny runs all of them at a size for a CPU. Exit code 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# A process that has used CUDA cannot share it with its forks. So the driver's library is asked for
# the number of GPUs, and bitsandbytes, which peft imports, stays away: it asks CUDA. What
# needs it is measured by `--option`, in a process that is not forked.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
if __name__ == "__main__" and "--option" not in sys.argv:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_jobs import JOBS
from gpu_jobs import options as option_job
from gpu_jobs.case import Case, CaseError, Job, run
from gpu_jobs.table import markdown

from tp_grpo.store import files

SLOWER = 4  # a case may take so many times its estimate, and half a minute


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="in all (default: %(default)s)")
    parser.add_argument("--out", type=files.expanded, help="the folder of results and logs")
    parser.add_argument("--list", action="store_true", help="the jobs, and their seconds")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME")
    parser.add_argument("--tiny", action="store_true", help="all jobs at a size for a CPU")
    parser.add_argument("--option", choices=option_job.OPTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.option:
        print(json.dumps(option_job.measure(options.tiny, option_job.OPTIONS[options.option])))
        return 0
    jobs = [JOBS[name] for name in options.only]
    if options.list:
        print(listed(jobs, tiny=options.tiny))
        return 0
    if options.out is None:
        parser.error("--out FOLDER is needed: where the results are written")
    try:
        files.check_writable(options.out, "--out")
    except ValueError as error:
        parser.error(str(error))
    return Session(options.out, 60 * options.minutes, tiny=options.tiny).run(jobs)


def listed(jobs: Sequence[Job], *, tiny: bool) -> str:
    """A line for each job, and one for all of them."""
    seconds = {job.name: sum(case.seconds for case in job.cases(tiny)) for job in jobs}
    lines = [f"{job.name:<14}{seconds[job.name]:>5.0f} s  {job.title}" for job in jobs]
    return "\n".join([*lines, f"{'all':<14}{sum(seconds.values()):>5.0f} s"])


class Session:
    """One sitting at a device: the jobs until the time is up."""

    def __init__(self, folder: Path, seconds: float, *, tiny: bool) -> None:
        self.folder, self.tiny = folder, tiny
        self.end = time.monotonic() + seconds
        self.results = folder / "results.jsonl"
        self.rows: list[dict[str, object]] = []
        if self.results.is_file():
            self.rows = files.read_lines(self.results)
        self.missing: list[str] = []

    def run(self, jobs: Sequence[Job]) -> int:
        """Exit code."""
        if torch.cuda.is_initialized():
            print("CUDA is in use already: its processes could not be forked", file=sys.stderr)
            return 2
        failed = 0
        for job in jobs:
            for case in job.cases(self.tiny):
                failed += not self.case(job, case)
                self.write()
        print(f"\n{(self.folder / 'report.md').read_text()}")
        return int(failed > 0)

    def case(self, job: Job, case: Case) -> bool:
        """Measure one; False if it failed. What does not fit in the time that is left is noted."""
        begun, name = time.monotonic(), f"{job.name}: {case.name}"
        left = self.end - begun
        if left < (1 if self.tiny else case.seconds):
            words = f"did not fit, {case.seconds:.0f} s of {max(left, 0):.0f} that were left"
            self.missing.append(f"{name}: {words}")
            print(f"{name}: {words}", flush=True)
            return True
        try:
            figures = run(case, self.folder / job.name, min(left, SLOWER * case.seconds + 30))
        except CaseError as error:
            self.missing.append(f"{name}: {error}")
            print(f"{name}: {error} ({time.monotonic() - begun:.0f} s)", flush=True)
            return False
        key = {"job": job.name, "case": case.name}
        self.rows = [row for row in self.rows if key.items() - row.items()]
        self.rows.append({**key, **figures})
        print(f"{name}: done ({time.monotonic() - begun:.0f} s)", flush=True)
        return True

    def write(self) -> None:
        self.results.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        titles = {name: job.title for name, job in JOBS.items()}
        text = markdown(self.rows, titles, self.missing, tiny=self.tiny)
        (self.folder / "report.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
