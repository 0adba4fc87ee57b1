"""What a recipe does on this GPU at full size, without its weights: random ones of the same shapes.

    python scripts/gpu_check.py --config=config/tp_grpo.py:pickscore_sd3 --config.model.dtype=bf16
    python scripts/gpu_check.py --config=config/tp_grpo.py:pickscore_flux_80gb

One rollout of a batch, its decoding and one update, as Markdown: seconds, work and TFLOP a second,
their share of the fastest matrix product, peak memory, and |ratio - 1| of an unmoved policy.
"""

from __future__ import annotations

import logging
import platform
from datetime import date

from _config import CONFIG, mistake, parse, quiet
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
        probed = probe(settings, repeats=_REPEATS.value)
    except (ValueError, OSError) as error:
        return mistake(error)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    model = settings.model
    size = f"{model.height} x {model.width}, batch {probed.batch_size}"
    software = f"torch {torch.__version__}, {date.today()}"
    print(f"{model.path}, {model.dtype}, {size}; {device}, {software}\n")
    print("| phase | seconds | a second | TFLOP/s | share of matmul | peak GB |")
    print("|---|---|---|---|---|---|")
    counts = {
        "rollout": (probed.evaluations, "evaluations"),
        "decode": (probed.images, "images"),
        "update": (probed.trained, "points"),
    }
    for name, phase in probed.phases.items():
        count, unit = counts[name]
        rate = phase.flops / phase.seconds
        work = f"{count / phase.seconds:.2f} {unit} | {rate / 1e12:.2f}"
        share = f"{rate / probed.matmul:.0%} | {phase.peak / 2**30:.1f}"
        print(f"| {name} | {phase.seconds:.3f} | {work} | {share} |")
    ratio = "" if probed.ratio_dev is None else f"; ratio_dev {probed.ratio_dev:.1e}"
    print(f"\nmatmul {probed.matmul / 1e12:.1f} TFLOP/s{ratio}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
