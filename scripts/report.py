"""See what runs did: python scripts/report.py RUN [RUN ...] [--out FILE] [--png DIR] [--against shapes_tiny]

Writes one HTML page that needs no network: curves of all the runs over each other, and the trajectories with their
turning points. Without --out it is report.html in the first run's folder. For example

    python scripts/report.py runs/quickstart --against shapes_tiny
    python scripts/report.py runs/credit/terminal-1 runs/credit/turning_point-1 --out compare.html --png figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--out", type=Path, help="the page to write; default: report.html in the first run's folder"
    )
    parser.add_argument(
        "--png",
        type=Path,
        metavar="DIR",
        help="also write the figures as PNG files into this folder",
    )
    parser.add_argument(
        "--against", metavar="NAME", help="reference curves: a name in docs/curves, or a .json file"
    )
    parser.add_argument(
        "--axis",
        choices=("updates", "evaluations", "seconds"),
        default="updates",
        help="of the PNGs",
    )
    given = parser.parse_args()

    from tp_grpo.report import figures, reference, write

    out = given.out or given.runs[0] / "report.html"
    try:
        curves = reference.load(given.against) if given.against else None
        write(given.runs, out, against=curves)
        if given.png:
            figures.save(given.runs, given.png, axis=given.axis, against=curves)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
