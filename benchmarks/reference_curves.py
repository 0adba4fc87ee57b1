"""Curves of `report.py --against`: python benchmarks/reference_curves.py NAME --runs METHOD RUN..

Give --runs once per method: its name, then its seeds' folders. Writes docs/curves/NAME.json:

    python benchmarks/credit.py --out runs/credit --methods TP-GRPO --seeds 3
    python benchmarks/reference_curves.py shapes_tiny --runs TP-GRPO runs/credit/turning_point-?/
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tp_grpo.report import reference
from tp_grpo.report.data import read
from tp_grpo.store.files import expanded


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="what --against will call it")
    parser.add_argument(
        "--runs", nargs="+", action="append", required=True, metavar=("METHOD", "RUN")
    )
    parser.add_argument("--folder", type=expanded, default=reference.CURVES)
    options = parser.parse_args(arguments)
    try:
        curves = reference.make(
            {method: [read(expanded(run)) for run in runs] for method, *runs in options.runs}
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"{options.name}.json"
    path.write_text(json.dumps(curves, sort_keys=True) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
