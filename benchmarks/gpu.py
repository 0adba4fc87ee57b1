"""All that waits for a GPU, in one command: python benchmarks/gpu.py --minutes 8 --out FOLDER

Jobs in order of worth, each of cases in processes of their own; weights are random ones of the
full sizes, so that nothing is downloaded. Every figure is written to FOLDER/results.jsonl and
FOLDER/report.md as soon as it is there; what did not fit or failed is said at the end. --list shows
the jobs with their estimated seconds, --only NAME runs one, and --tiny runs all of them at a size
for a CPU. Exit code 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# The number of GPUs is asked of the driver's library: CUDA itself could not be used after a fork.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_jobs import JOBS
from gpu_jobs.case import Case, CaseError, Figures, Job, run
from gpu_jobs.table import markdown

SLOWER = 4  # a case may take so many times its estimate, and half a minute


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="in all (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder of results and logs")
    parser.add_argument("--list", action="store_true", help="the jobs, and their seconds")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME")
    parser.add_argument("--tiny", action="store_true", help="all jobs at a size for a CPU")
    options = parser.parse_args(arguments)
    jobs = [JOBS[name] for name in options.only]
    if options.list:
        print(listed(jobs, tiny=options.tiny))
        return 0
    if options.out is None:
        parser.error("--out FOLDER is needed: where the results are written")
    return Session(options.out, 60 * options.minutes, tiny=options.tiny).run(jobs)


def listed(jobs: Sequence[Job], *, tiny: bool) -> str:
    """A line for each job, and the sum."""
    seconds = {job.name: sum(case.seconds for case in job.cases(tiny)) for job in jobs}
    lines = [f"{job.name:<14}{seconds[job.name]:>5.0f} s  {job.title}" for job in jobs]
    return "\n".join([*lines, f"{'all':<14}{sum(seconds.values()):>5.0f} s"])


class Session:
    """One sitting at a device: the jobs until the time is up."""

    def __init__(self, folder: Path, seconds: float, *, tiny: bool) -> None:
        self.folder, self.tiny = folder, tiny
        self.end = time.monotonic() + seconds
        self.rows: list[dict[str, object]] = []
        self.missing: list[str] = []

    def run(self, jobs: Sequence[Job]) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        failed = 0
        for job in jobs:
            for case in job.cases(self.tiny):
                failed += not self.case(job, case)
        self.write()
        print(f"\n{self.folder / 'report.md'}")
        return int(failed > 0)

    def case(self, job: Job, case: Case) -> bool:
        """Measure one; False if it failed. What does not fit in the time that is left is noted."""
        left, name = self.end - time.monotonic(), f"{job.name}: {case.name}"
        if left < (1 if self.tiny else case.seconds):
            self.missing.append(f"{name}: did not fit, {case.seconds:.0f} s of {max(left, 0):.0f}")
            print(self.missing[-1], flush=True)
            return True
        begun = time.monotonic()
        try:
            limit = min(left, SLOWER * case.seconds + 30)
            self.keep(job, case, run(case, self.folder / job.name, limit))
        except CaseError as error:
            self.missing.append(f"{name}: {error}")
        words = self.missing[-1] if self.failed(name) else f"{name}: done"
        print(f"{words} ({time.monotonic() - begun:.0f} s)", flush=True)
        self.write()
        return not self.failed(name)

    def failed(self, name: str) -> bool:
        return bool(self.missing) and self.missing[-1].startswith(f"{name}: ")

    def keep(self, job: Job, case: Case, figures: Figures) -> None:
        row = {"job": job.name, "case": case.name, **figures}
        self.rows.append(row)
        with (self.folder / "results.jsonl").open("a") as results:
            results.write(json.dumps(row) + "\n")

    def write(self) -> None:
        titles = {name: job.title for name, job in JOBS.items()}
        text = markdown(self.rows, titles, self.missing, tiny=self.tiny)
        (self.folder / "report.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
