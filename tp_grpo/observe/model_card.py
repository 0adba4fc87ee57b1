"""The card that lies beside every exported policy: what it was trained on, by what, and what that gave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Of the bases that the recipes name: what the hub calls the licence, and what it calls itself.
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


def write(config: Mapping[str, Any], gains: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with the hub's metadata; `gains` as `report.gains` gives them, empty before a second evaluation."""
    base, lora, sample = config["model"]["path"], config["lora"], config["sample"]
    rewards = "; ".join(
        f"{name} ({options})" for name, options in config["rewards"]["scorers"].items()
    )
    bound = f" ({LICENCES[base][1]})" if base in LICENCES else ""
    what = (
        f"a LoRA of rank {lora['rank']}, alpha {lora['alpha']}"
        if lora["rank"]
        else "the whole transformer"
    )
    name = config["credit"]["name"]
    method = METHODS.get(name, f"the credit method `{name}`")  # a recipe file may bring its own
    lines = [
        "---",
        *_origin(base),
        "library_name: diffusers",
        "tags: [tp_grpo, lora, text-to-image]"
        if lora["rank"]
        else "tags: [tp_grpo, text-to-image]",
        "---",
        "",
        f"# {config['run_name']}",
        "",
        f"{what[0].upper()}{what[1:]} on `{base}`, trained with {method} by tp_grpo.",
        "The weights are the run's moving average.",
        "",
        f"- Rewards: {rewards}",
        f"- Prompts: `{config['prompts']['train']}`; held out: `{config['prompts']['eval']}`",
        f"- Sampling in training: {sample['steps']} steps, {sample['window_size']} of them stochastic "
        f"({sample['kind']}, noise level {sample['noise_level']}), guidance {sample['guidance_scale']}, "
        f"{config['model']['height']} x {config['model']['width']} pixels, seed {config['seed']}",
        f"- Licence: the base model's{bound} binds this too.",
        "",
        *_table(gains),
        _use(bool(lora["rank"])),
    ]
    return "\n".join(lines)


def _origin(base: str) -> list[str]:
    """The hub takes ids of its own for base_model, and refuses a card that names a folder."""
    if base not in LICENCES:
        return (
            [f"base_model: {base}"]
            if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
            else []
        )
    return [f"base_model: {base}", "license: other", f"license_name: {LICENCES[base][0]}"]


def _table(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    if not gains:
        return ["Not evaluated yet.", ""]
    rows = [
        f"| {row['name']} | {row['before']:.4f} | {row['after']:.4f} "
        f"| {row['change']:+.4f} ± {row['se']:.4f} | {row['n']} |"
        for row in gains
    ]
    return [
        f"Held-out prompts, same noise, evaluated after epoch {gains[0]['epoch']} (± standard error over prompts):",
        "",
        "| score | base | trained | change | images |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _use(lora: bool) -> str:
    if lora:
        return "Use: `pipe.load_lora_weights(FOLDER)`, or `peft.PeftModel.from_pretrained(pipe.transformer, FOLDER)`.\n"
    return "Use: load `FOLDER/transformer` with the transformer class's `from_pretrained` and hand it to the pipeline.\n"
