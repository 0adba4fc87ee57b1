"""The card of an exported policy: what it was trained on, how, and with what result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models import pretrained
from tp_grpo.settings import points_of

# What gives the steps of a trajectory their rewards, by `credit.name`.
METHODS = {
    "terminal": "Flow-GRPO (arXiv 2505.05470)",
    "incremental": "GRPO on per-step increments",
    "value": "GRPO on a value estimate from the reward ladder",
    "turning_point": "TurningPoint-GRPO (arXiv 2602.06422)",
}
WINDOWS = {
    "random": "a window drawn for each epoch, as Flow-GRPO-Fast has it",
    "sliding": "a sliding window, as MixGRPO has it (arXiv 2507.21802)",
}
CARD = """---
{origin}library_name: diffusers
tags: [{tags}]
---

# {name}

{subject} on `{base}`{merged}, trained with {method} by tp_grpo.
The weights are the run's moving average.

- Rewards: {rewards}
- Prompts: `{prompts[train]}`; held out: `{prompts[eval]}`
- Sampling in training: {sampling}, guidance {sample[guidance_scale]}, \
{model[height]} x {model[width]} pixels, seed {seed}
{papers}- Licence: the base model's{licence} binds this too.

{table}

Use: {use}.{strength}
"""
STRENGTH = """
Alpha / rank is multiplied into the weights, and the files' alpha is the rank: a tool that reads \
the tensors alone applies the LoRA in full at strength 1."""
TABLE = """Held-out prompts, same noise, evaluated after epoch {epoch} \
(± standard error over prompts):

| score | base | trained | change | images |
|---|---|---|---|---|
"""
ROW = "| {name} | {before:.4f} | {after:.4f} | {change:+.4f} ± {se:.4f} | {n} |"


def write(config: Mapping[str, Any], gains: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with the hub's metadata; `gains` of `report.gains`, empty before two evaluations."""
    base, rank = config["model"]["path"], config["lora"]["rank"]
    known = pretrained.published().get(base)
    method, sampling = _method(config), _sampling(config)
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
        merged=_merged(config["model"].get("adapter", "")),
        method=method,
        sampling=sampling,
        papers=_papers(f"{method} {sampling}"),
        rewards="; ".join(f"{name} ({options})" for name, options in scorers),
        licence=f" ({known['licence']['title']})" if known else "",
        strength=STRENGTH if rank else "",
        table=TABLE.format(epoch=gains[0]["epoch"]) + rows if gains else "Not evaluated yet.",
        use="`pipe.load_lora_weights(FOLDER)`, or "
        "`peft.PeftModel.from_pretrained(pipe.transformer, FOLDER)`"
        if rank
        else "load `FOLDER/transformer` with the transformer class's `from_pretrained` and hand it "
        "to the pipeline",
    )


def _method(config: Mapping[str, Any]) -> str:
    """The algorithm: its loss, where it looks, what it rewards; each with its paper."""
    objective, credit = config["objective"]["name"], config["credit"]["name"]
    # A recipe may bring a credit of its own.
    loss = OBJECTIVES[objective].title
    rewards = METHODS.get(credit, f"the credit method `{credit}`")
    points = points_of(objective, config["sample"]["groups"])
    if points == "shared_state":
        parts = [f"{loss} on shared-state groups"]
    elif points == "noised":
        parts = [loss]
    else:
        parts = [rewards] if objective == "grpo" else [loss, f"step rewards of {rewards}"]
    if config["advantage"]["combine"] == "gdpo":
        parts.append("advantages of GDPO (arXiv 2601.05242)")
    if config["advantage"]["over"] == "joint" and points == "trajectories":
        parts.append("joint normalisation of a group's steps (arXiv 2603.28718)")
    return ", ".join(parts)


def _sampling(config: Mapping[str, Any]) -> str:
    """The steps of a rollout, and which of them are stochastic."""
    sample = config["sample"]
    points = points_of(config["objective"]["name"], sample["groups"])
    steps, count = f"{sample['steps']} steps", sample["window_size"]
    if points == "noised":
        return f"{steps} of the ODE"
    source = " (arXiv 2509.05952)" if sample["kind"] == "cps" else ""
    how = f"{sample['kind']}{source}, noise level {sample['noise_level']}"
    if points == "shared_state":
        return f"{steps}, one of {count} stochastic ({how})"
    window = f" in {WINDOWS[sample['window']]}" if sample["window"] in WINDOWS else ""
    return f"{steps}, {count} of them stochastic{window} ({how})"


def _merged(adapter: str) -> str:
    if not adapter:
        return ""
    return f" with `{adapter}` merged into it (`load_lora_weights` and `fuse_lora` it first)"


def _papers(text: str) -> str:
    """A line with links to the papers that the text names; nothing where it names none."""
    known = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", text))
    links = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in known)
    return f"- To cite: {links}\n" if known else ""


def _origin(base: str) -> str:
    """Lines of metadata. The hub refuses a card whose base_model is a folder."""
    if known := pretrained.published().get(base):
        name = known["licence"]["hub_name"]
        free = name == "apache-2.0"
        licence = f"license: {name}" if free else f"license: other\nlicense_name: {name}"
        return f"base_model: {base}\n{licence}\n"
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    return f"base_model: {base}\n" if is_hub_id else ""
