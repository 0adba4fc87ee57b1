"""See what runs did: python scripts/report.py RUN [RUN ...] [--out FILE] [--png DIR]

Writes one HTML page that needs no network: the curves of all runs over each other, and the
trajectories with their turning points. For example

    python scripts/report.py runs/quickstart --against shapes_tiny
    python scripts/report.py runs/terminal-1 runs/turning_point-1 --out compare.html --png figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reward_models import terminal
from tp_grpo.store.files import expanded


def main() -> int:
    terminal.accept_any_text()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("runs", nargs="+", type=expanded, metavar="RUN", help="a run's folder")
    about = "the page to write; default: report.html in the first run's folder"
    parser.add_argument("--out", type=expanded, help=about)
    about = "also write the figures as PNG files into this folder"
    parser.add_argument("--png", type=expanded, metavar="DIR", help=about)
    about = "reference curves: a name in docs/curves, or a .json file"
    parser.add_argument("--against", metavar="NAME", help=about)
    axes = ("updates", "evaluations", "seconds")
    parser.add_argument("--axis", choices=axes, default="updates", help="of the PNG files")
    options = parser.parse_args()

    from tp_grpo.report import figures, reference, write
    from tp_grpo.store import files

    out = options.out or options.runs[0] / "report.html"
    try:
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder; name a file, as in {out / 'report.html'}")
        if options.out or out.parent.is_dir():
            files.check_writable(out.parent, "--out")
        if options.png:
            files.check_writable(options.png, "--png")
        curves = reference.load(options.against) if options.against else None
        write(options.runs, out, against=curves)
        if options.png:
            figures.save(options.runs, options.png, axis=options.axis, against=curves)
    except (ValueError, OSError) as error:
        words = files.in_words(error) if isinstance(error, OSError) else error
        print(f"error: {words}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
