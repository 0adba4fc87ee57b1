"""Look at a trained policy: images of your prompts, and the base model's from the same noise.

    python scripts/generate.py --config=config/tp_grpo.py:shapes_tiny --prompts="a red circle" \\
        --checkpoint=runs/quickstart --out=images --grid

--prompts is a text, a file (.txt: a prompt per line; .jsonl) or a module:function. The config gives
steps and guidance (eval.steps, sample.guidance_scale). An image depends on the seed, the prompt's
position and the member alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _config import CONFIG, mistake, parse, quiet
from absl import app, flags

if TYPE_CHECKING:
    from tp_grpo.settings import Settings

Images = dict[tuple[int, int], Any]  # PIL images by (prompt, member)

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a run, one of its checkpoints, or an exported policy; none: base"
)
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "a text, a prompt file or a module:function", required=True
)
_OUT = flags.DEFINE_string("out", "images", "folder for the images")
_SEED = flags.DEFINE_integer("seed", None, "of the noise; none: the config's")
_MEMBERS = flags.DEFINE_integer("members", 1, "images per prompt", lower_bound=1)
_GRID = flags.DEFINE_boolean(
    "grid", False, "also one sheet: a row per prompt, base on the left, trained on the right"
)


def main(_: list[str]) -> int:
    from tp_grpo.settings import Settings
    from tp_grpo.store import files

    quiet()
    try:
        if _SEED.value is not None:
            CONFIG.value.seed = _SEED.value
        generate(Settings.read(CONFIG.value), files.expanded(_OUT.value))
    except (ValueError, OSError) as error:
        return mistake(error)
    except KeyboardInterrupt:
        print(f"\nstopped by Ctrl-C; {_OUT.value} keeps the finished images", file=sys.stderr)
        return 130
    return 0


def generate(config: Settings, out: Path) -> None:
    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.ranks.runtime import Runtime
    from tp_grpo.store import files

    policy = policy_on_base.find(_CHECKPOINT.value)
    known = prompts.text_or_source(_PROMPTS.value, field="--prompts")
    files.check_writable(out, "--out")
    runtime = Runtime(config.model.dtype, (), str(out))
    if runtime.world_size > 1:
        raise ValueError("generate.py runs in one process; scripts/evaluate.py shares its work")
    loaded = policy_on_base.PolicyOnBase(config.model, runtime, policy)
    with loaded.base():
        sheets = [draw(config, runtime, loaded.backbone, known, out, "base")]
    if policy:
        sheets.append(draw(config, runtime, loaded.backbone, known, out, "tuned"))
    if _GRID.value:
        grid(sheets, len(known), _MEMBERS.value).save(out / "grid.png")
    runtime.say(f"{sum(map(len, sheets))} images in {out}")


def draw(config: Settings, runtime: Any, backbone: Any, known: Any, out: Path, kind: str) -> Images:
    """Save each image once its batch is sampled."""
    from PIL import Image

    from tp_grpo.evaluate.held_out import sample_images, samples

    images = {}
    chosen = samples(len(known), _MEMBERS.value)
    for batch, pixels, _ in sample_images(runtime, backbone, known, chosen, config=config):
        keys = zip(batch.group_id.tolist(), batch.member.tolist(), strict=True)
        for (prompt, member), image in zip(keys, pixels, strict=True):
            images[prompt, member] = Image.fromarray(image)
            images[prompt, member].save(out / f"{prompt:04d}-{member}-{kind}.png")
    return images


def grid(sheets: list[Images], prompts: int, members: int) -> Any:
    """A row per prompt: its members by the base model, then by the trained one."""
    from PIL import Image

    width, height = sheets[0][0, 0].size
    gap = max(2, width // 32)
    columns = len(sheets) * members
    size = (columns * (width + gap) + gap, prompts * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for number, images in enumerate(sheets):
        for (prompt, member), image in images.items():
            column = number * members + member
            sheet.paste(image, (gap + column * (width + gap), gap + prompt * (height + gap)))
    return sheet


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
