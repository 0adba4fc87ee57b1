"""Measure a trained policy, or the base model, on any prompts and rewards; can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_models import macros
from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate import policy_on_base
from tp_grpo.evaluate.held_out import evaluate, samples
from tp_grpo.evaluate.score_table import ScoreTable, as_markdown, mean_rows
from tp_grpo.models import contents
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards, RewardSet
from tp_grpo.settings import Settings
from tp_grpo.store.compare import CONTENT
from tp_grpo.types import PromptBatch

MODEL_FIELDS = (
    *("type", "path", "revision", "adapter", "dtype"),
    *("height", "width", "max_sequence_length", "vae_dtype"),
)
EVALUATED = tuple(name + CONTENT for name in ("model.path", "model.adapter", "prompts.eval"))


def assess(
    config: Settings, scorers: Mapping[str, Any], policy: Path | None, prompts: PromptSet, out: Path
) -> str:
    """`evaluate` into the folder `out`, without the images scored there; returns its table.

    policy: a folder from `policy_on_base.find`, None for the base model. `out` gets a line an image
    once it is scored, and table.md and table.json at the end. Raises ValueError before weights
    load, RewardError when a scorer fails.
    """
    most = config.eval.prompts or None
    prompts = PromptSet(prompts.prompts[:most], prompts.metadata[:most])
    runtime = Runtime(config.model.dtype, (), str(out))
    table = ScoreTable(out, _settings(config, scorers, policy, prompts), runtime.rank)
    chosen = samples(len(prompts), config.eval.members)
    scores = table.read(chosen)
    missing = [sample for sample in chosen if sample not in scores]
    runtime.accelerator.wait_for_everyone()  # no rank writes before all have read
    if scores:
        scored = len(chosen) - len(missing)
        runtime.say(f"{scored} of {len(chosen)} images are scored already")
    if missing:
        sizes = {"eval.members": config.eval.members}
        with contextlib.closing(RewardSet(scorers, sizes)) as rewards:
            if rewards.grouped:  # what is compared is sampled together again
                lacking = {prompt for prompt, _ in missing}
                missing = [sample for sample in chosen if sample[0] in lacking]
            rewards.check_prompts(prompts.prompts, prompts.metadata)
            backbone = policy_on_base.PolicyOnBase(config.model, runtime, policy).backbone

            def keep(batch: PromptBatch, scored: Rewards) -> None:
                table.append(batch, scored)
                rewards.settle()

            evaluate(runtime, backbone, rewards, prompts, config=config, chosen=missing, keep=keep)
        scores = table.read(chosen)
    rows = mean_rows(scores, prompts, macros(scorers))
    text = as_markdown(rows)
    if unscored := len(chosen) - len(scores):
        again = "the same command tries them again"
        runtime.say(f"{unscored} of {len(chosen)} images have no score; {again}")
    if runtime.is_main:
        (out / "table.json").write_text(json.dumps(rows, indent=1))
        (out / "table.md").write_text(text + "\n", "utf-8")
        runtime.say(f"{text}\nwritten to {out}")
    runtime.leave()
    return text


def _settings(
    config: Settings, scorers: Mapping[str, Any], policy: Path | None, prompts: PromptSet
) -> dict[str, Any]:
    """All that the scores depend on; batch sizes and ranks have no part in it."""
    digests = contents.of(config.model) | {"prompts": prompts.digest}
    return {
        **_common(config, scorers),
        "policy": policy_on_base.digest(policy) if policy else "base",
        "prompts": hashlib.sha256(json.dumps(prompts.prompts).encode()).hexdigest(),
        **{field + CONTENT: digest for field, digest in digests.items()},
    }


def settings(config: Settings, digests: Mapping[str, str]) -> dict[str, Any]:
    """All that the scores of a run's evaluations depend on but the policy; digests: its contents.

    Comparable by `changed_scores`.
    """
    return {
        **_common(config, config.rewards.scorers),
        "prompts": {"eval": config.prompts.eval, "count": config.eval.prompts},
        **{name: digest for name, digest in digests.items() if name in EVALUATED},
    }


def _common(config: Settings, scorers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": {name: getattr(config.model, name) for name in MODEL_FIELDS},
        "steps": config.eval.steps,
        "guidance_scale": config.sample.guidance_scale,
        "members": config.eval.members,
        "seed": config.seed,
        "scorers": dict(scorers),
    }
