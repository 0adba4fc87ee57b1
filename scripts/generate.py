"""Look at a trained policy: seeded images of your prompts, the base model's beside them.

    python scripts/generate.py --config=config/tp_grpo.py:shapes_tiny --checkpoint=runs/quickstart \\
        --prompts="a red circle above a blue square" --out=images --grid

--prompts is a text, a file (.txt: a prompt a line; .jsonl) or a module:function. Steps and guidance are the config's
(eval.steps, sample.guidance_scale). An image depends on the seed, the prompt's place and the member alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _config import CONFIG, parse, quiet
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
_MEMBERS = flags.DEFINE_integer("members", 1, "images a prompt", lower_bound=1)
_GRID = flags.DEFINE_boolean(
    "grid", False, "one sheet as well: a row a prompt, base on the left, trained on the right"
)


def main(_: list[str]) -> int:
    from tp_grpo.settings import Settings

    quiet()
    try:
        if _SEED.value is not None:
            CONFIG.value.seed = _SEED.value
        return generate(Settings.read(CONFIG.value))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nstopped by Ctrl-C; {_OUT.value} keeps the images that were drawn", file=sys.stderr
        )
        return 130


def generate(config: Settings) -> int:
    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.ranks.runtime import Runtime

    policy = policy_on_base.find(_CHECKPOINT.value) if _CHECKPOINT.value else None
    text = _PROMPTS.value
    named = text.endswith((".txt", ".jsonl")) or re.fullmatch(r"[\w.]+:\w+", text)
    known = prompts.load(text, field="--prompts") if named else prompts.PromptSet([text], [{}])
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(config.model.dtype, (), str(out))
    if runtime.world_size > 1:
        raise ValueError(
            "generate.py works in one process; scripts/evaluate.py shares its work between several"
        )
    loaded = policy_on_base.PolicyOnBase(config.model, runtime, policy)
    sheets: dict[str, Images] = {}
    with loaded.base():
        sheets["base"] = draw(config, runtime, loaded.backbone, known, out, "base")
    if policy:
        sheets["tuned"] = draw(config, runtime, loaded.backbone, known, out, "tuned")
    if _GRID.value:
        grid(list(sheets.values()), len(known), _MEMBERS.value).save(out / "grid.png")
    runtime.say(f"{sum(map(len, sheets.values()))} images in {out}")
    return 0


def draw(config: Settings, runtime: Any, backbone: Any, known: Any, out: Path, kind: str) -> Images:
    """Each image is on disk as soon as its batch is drawn."""
    from PIL import Image

    from tp_grpo.evaluate.held_out import sample_images, samples

    images = {}
    chosen = samples(len(known), _MEMBERS.value)
    for batch, pixels, _ in sample_images(runtime, backbone, known, chosen, config=config):
        for prompt, member, image in zip(
            batch.group_id.tolist(), batch.member.tolist(), pixels, strict=True
        ):
            images[prompt, member] = Image.fromarray(image)
            images[prompt, member].save(out / f"{prompt:04d}-{member}-{kind}.png")
    return images


def grid(sheets: list[Images], prompts: int, members: int) -> Any:
    """A row a prompt: its members by the base model, then by the trained one."""
    from PIL import Image

    width, height = next(iter(sheets[0].values())).size
    gap = max(2, width // 32)
    columns = len(sheets) * members
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, prompts * (height + gap) + gap), "white"
    )
    for which, images in enumerate(sheets):
        for (prompt, member), image in images.items():
            column = which * members + member
            sheet.paste(image, (gap + column * (width + gap), gap + prompt * (height + gap)))
    return sheet


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
