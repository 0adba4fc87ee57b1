"""What a recipe does on this GPU at full size, without its weights: random ones of the same shapes.

    python scripts/gpu_check.py --config=config/tp_grpo.py:pickscore_sd3 --config.model.dtype=bf16
    python scripts/gpu_check.py --config=config/tp_grpo.py:pickscore_flux_80gb

One rollout, its decoding and one update of a batch, as Markdown: seconds, model evaluations and TFLOP a second, their
share of the fastest matrix product, peak memory, and how far the ratio of an unmoved policy is from 1.
"""

from __future__ import annotations

import logging
import platform
import sys
from datetime import date

from _config import CONFIG, parse, quiet
from absl import app, flags

_REPEATS = flags.DEFINE_integer("repeats", 5, "of every phase; the median is shown", lower_bound=1)


def main(_: list[str]) -> int:
    import torch

    from tp_grpo.cost.probe import probe
    from tp_grpo.settings import Settings

    quiet()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        settings = Settings.read(CONFIG.value)
        found = probe(settings, repeats=_REPEATS.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    model = settings.model
    print(
        f"{model.path}, {model.dtype}, {model.height} x {model.width}, batch {found.batch_size}; {device}, ",
        end="",
    )
    print(f"torch {torch.__version__}, {date.today()}\n")
    print("| phase | seconds | a second | TFLOP/s | share of matmul | peak GB |")
    print("|---|---|---|---|---|---|")
    counts = {
        "rollout": (found.nfe * found.batch_size, "evaluations"),
        "decode": (found.images, "images"),
        "update": (found.batch_size, "trajectories"),
    }
    for name, phase in found.phases.items():
        count, unit = counts[name]
        rate = phase.flops / phase.seconds
        print(
            f"| {name} | {phase.seconds:.3f} | {count / phase.seconds:.2f} {unit} | {rate / 1e12:.2f} "
            f"| {rate / found.matmul:.0%} | {phase.peak / 2**30:.1f} |"
        )
    print(f"\nmatmul {found.matmul / 1e12:.1f} TFLOP/s; ratio_dev {found.ratio_dev:.1e}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
