"""Save the embedded pipeline, measure it as a user would load it, and write its model card.

python -m tp_grpo.shapes.card FOLDER measures again, for instance after a change of the scorer.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from reward_models.shapes import ShapesScorer
from tp_grpo.shapes import captions
from tp_grpo.shapes.model import T5_TOKENS
from tp_grpo.shapes.render import SIZE, render

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
STEPS = 10
CHUNK = 64

Figures = dict[str, dict[str, dict[str, float]]]  # caption set -> family -> name -> value


def save(pipeline: StableDiffusion3Pipeline, out: Path) -> None:
    """Save in fp16; a plain `from_pretrained` gives fp32 everywhere."""
    pipeline.to(torch.float16).save_pretrained(out)
    for name in TEXT_ENCODERS:
        # transformers loads the config's dtype, diffusers fp32: with fp32 there they agree.
        path = out / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)


def measure(folder: Path, *, images: int, seed: int) -> Figures:
    """exact and graded by caption set, guidance and family; stock pipeline, 10 ODE steps."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(seed)
    figures: Figures = {
        "reconstructed truth": reconstruct(pipeline, stratified(captions.train(), images, rng), rng)
    }
    for name, pool in (
        ("training captions", captions.train()),
        ("held-out captions", captions.held_out()),
    ):
        for guidance in (1.0, 3.0):
            chosen = stratified(pool, images, rng)
            pixels = generate(pipeline, [prompt for prompt, _ in chosen], guidance, seed)
            label = f"{name}, {'no guidance' if guidance == 1 else f'CFG {guidance:g}'}"
            figures[label] = by_family(pixels, chosen) | {
                "all": overall(by_family(pixels, chosen), pool)
            }
    return figures


def stratified(
    pool: list[captions.Caption], n: int, rng: np.random.Generator
) -> list[captions.Caption]:
    """About n captions, equally many of each family in the pool."""
    tags = sorted({metadata["tag"] for _, metadata in pool})
    families = [[caption for caption in pool if caption[1]["tag"] == tag] for tag in tags]
    return [
        family[i]
        for family in families
        for i in rng.integers(len(family), size=max(1, n // len(tags)))
    ]


def overall(
    families: dict[str, dict[str, float]], pool: list[captions.Caption]
) -> dict[str, float]:
    """The score of captions drawn evenly from the pool: families weighted by their share."""
    share = {
        tag: sum(metadata["tag"] == tag for _, metadata in pool) / len(pool) for tag in families
    }
    figures = {
        name: sum(share[tag] * row[name] for tag, row in families.items())
        for name in ("exact", "graded")
    }
    return figures | {"n": sum(row["n"] for row in families.values())}


@torch.no_grad()
def generate(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], guidance: float, seed: int
) -> np.ndarray:
    """Images (n, 48, 48, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    chunks = [
        pipeline(
            prompts[i : i + CHUNK],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            max_sequence_length=T5_TOKENS,
            generator=generator,
            output_type="np",
        ).images
        for i in range(0, len(prompts), CHUNK)
    ]
    return (np.concatenate(chunks) * 255).round().astype(np.uint8)


@torch.no_grad()
def reconstruct(
    pipeline: StableDiffusion3Pipeline, chosen: list[captions.Caption], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Rendered truth through the VAE and back."""
    truth = np.stack([render(metadata, rng) for _, metadata in chosen])
    pixels = torch.from_numpy(truth).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    back = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    psnr = 10 * np.log10(255**2 / np.mean((back.astype(float) - truth) ** 2))
    families = by_family(back, chosen)
    return families | {"all": overall(families, captions.train()) | {"psnr_db": float(psnr)}}


def by_family(pixels: np.ndarray, chosen: list[captions.Caption]) -> dict[str, dict[str, float]]:
    """exact, graded and n for each family of captions."""
    scores = ShapesScorer()(
        pixels, [prompt for prompt, _ in chosen], [metadata for _, metadata in chosen]
    )
    rows: dict[str, list[int]] = defaultdict(list)
    for i, (_, metadata) in enumerate(chosen):
        rows[metadata["tag"]].append(i)
    return {
        tag: {name: float(scores.extras[name][indices].mean()) for name in ("exact", "graded")}
        | {"n": len(indices)}
        for tag, indices in sorted(rows.items())
    }


def provenance(*, seed: int, schedule: Any, seconds: float) -> dict[str, Any]:
    """How the weights were made, for the card."""
    options = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in vars(schedule).items()
    )
    return {
        "command": f"python -m tp_grpo.shapes.pretrain --out FOLDER --seed {seed} {options}",
        "minutes": round(seconds / 60),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}",
        "seed": seed,
        "card_images": schedule.card_images,
    }


def write(out: Path, figures: Figures, origin: dict[str, Any]) -> None:
    """README.md (the card), figures.json and SHA256SUMS next to the weights."""
    (out / "figures.json").write_text(
        json.dumps({"made": origin, "figures": figures}, indent=1) + "\n"
    )
    sums = {str(p.relative_to(out)): _sha256(p) for p in sorted(out.rglob("*.safetensors"))}
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    listed = "\n".join(f"- `{name}` `{digest}`" for name, digest in sums.items())
    (out / "README.md").write_text(
        CARD.format(**origin, tokens=T5_TOKENS, table=_table(figures), sums=listed), "utf-8"
    )


def _table(figures: Figures) -> str:
    lines = ["| captions | family | n | exact | graded |", "|---|---|---|---|---|"]
    for name, families in figures.items():
        for tag, row in families.items():
            lines.append(
                f"| {name} | {tag} | {row['n']:.0f} | {row['exact']:.3f} | {row['graded']:.3f} |"
            )
    psnr = figures["reconstructed truth"]["all"]["psnr_db"]
    return "\n".join([*lines, "", f"VAE reconstructions: {psnr:.1f} dB."])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CARD = """---
license: apache-2.0
library_name: diffusers
---
# Coloured shapes: a Stable Diffusion 3 pipeline of 5.7 MB

A genuine `StableDiffusion3Pipeline` (transformer 2.30 M parameters, VAE 0.18 M, two CLIP and one T5
text encoder) that draws one to four coloured shapes at 48 x 48 from captions such as "a green
triangle above a purple square". It exists so that reinforcement learning of flow-matching models
can be run, tested and understood on a laptop. It was trained on rendered images only, by the
command below; a tenth of the pair and position captions were never shown to it.

```python
pipe = StableDiffusion3Pipeline.from_pretrained("tp_grpo/shapes/weights")
pipe("a red circle and a blue square", height=48, width=48, num_inference_steps=10,
     guidance_scale=3, max_sequence_length={tokens}).images[0]
```

`max_sequence_length={tokens}` is what it was trained with; the pipeline's default of 256 pads the
prompt and shifts the images.

## Made by

`{command}`

{minutes} minutes ({machine}).

## Figures

Ten Euler steps of the stock pipeline; `exact` is the share of images in which every object, colour,
count and relation is right, `graded` the mean of the parts (`reward_models/shapes.py`).

{table}

## SHA-256

{sums}
"""


def main() -> None:
    folder = Path(sys.argv[1])
    origin = json.loads((folder / "figures.json").read_text())["made"]
    write(folder, measure(folder, images=origin["card_images"], seed=origin["seed"]), origin)


if __name__ == "__main__":
    main()
