"""The card of an exported policy: what it was trained on, how, and with what result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# By base model of the recipes: (the hub's name of its licence, the licence's title).
LICENCES = {
    "stabilityai/stable-diffusion-3.5-medium": (
        "stabilityai-ai-community",
        "Stability AI Community License",
    ),
    "black-forest-labs/FLUX.1-dev": (
        "flux-1-dev-non-commercial-license",
        "FLUX.1 [dev] Non-Commercial License",
    ),
}
METHODS = {
    "terminal": "Flow-GRPO (arXiv 2505.05470)",
    "incremental": "GRPO on per-step increments",
    "value": "GRPO on a value estimate from the reward ladder",
    "turning_point": "TurningPoint-GRPO (arXiv 2602.06422)",
}
CARD = """---
{origin}library_name: diffusers
tags: [{tags}]
---

# {name}

{subject} on `{base}`, trained with {method} by tp_grpo.
The weights are the run's moving average.

- Rewards: {rewards}
- Prompts: `{prompts[train]}`; held out: `{prompts[eval]}`
- Sampling in training: {sample[steps]} steps, {sample[window_size]} of them stochastic \
({sample[kind]}, noise level {sample[noise_level]}), guidance {sample[guidance_scale]}, \
{model[height]} x {model[width]} pixels, seed {seed}
- Licence: the base model's{licence} binds this too.

{table}

Use: {use}.
"""
TABLE = """Held-out prompts, same noise, evaluated after epoch {epoch} \
(± standard error over prompts):

| score | base | trained | change | images |
|---|---|---|---|---|
"""
ROW = "| {name} | {before:.4f} | {after:.4f} | {change:+.4f} ± {se:.4f} | {n} |"


def write(config: Mapping[str, Any], gains: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with the hub's metadata; `gains` of `report.gains`, empty before two evaluations."""
    base, rank = config["model"]["path"], config["lora"]["rank"]
    credit = config["credit"]["name"]
    lora = f"A LoRA of rank {rank}, alpha {config['lora']['alpha']}"
    scorers = config["rewards"]["scorers"].items()
    rows = "\n".join(ROW.format(**row) for row in gains)
    return CARD.format(
        **{name: config[name] for name in ("prompts", "sample", "model", "seed")},
        origin=_origin(base),
        tags="tp_grpo, lora, text-to-image" if rank else "tp_grpo, text-to-image",
        name=config["run_name"],
        subject=lora if rank else "The whole transformer",
        base=base,
        method=METHODS.get(credit, f"the credit method `{credit}`"),  # a recipe may bring its own
        rewards="; ".join(f"{name} ({options})" for name, options in scorers),
        licence=f" ({LICENCES[base][1]})" if base in LICENCES else "",
        table=TABLE.format(epoch=gains[0]["epoch"]) + rows if gains else "Not evaluated yet.",
        use="`pipe.load_lora_weights(FOLDER)`, or "
        "`peft.PeftModel.from_pretrained(pipe.transformer, FOLDER)`"
        if rank
        else "load `FOLDER/transformer` with the transformer class's `from_pretrained` and hand it "
        "to the pipeline",
    )


def _origin(base: str) -> str:
    """Lines of metadata. The hub refuses a card whose base_model is a folder."""
    if base in LICENCES:
        return f"base_model: {base}\nlicense: other\nlicense_name: {LICENCES[base][0]}\n"
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    return f"base_model: {base}\n" if is_hub_id else ""
