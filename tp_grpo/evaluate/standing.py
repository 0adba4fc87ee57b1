"""Measure a trained policy, or the base model, on any prompts by any rewards; stopped and continued at will."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from reward_models import macros
from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate import policy_on_base
from tp_grpo.evaluate.held_out import columns_of, sample_images, samples
from tp_grpo.evaluate.score_table import Sample, ScoreTable, as_markdown, summarise
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import Rewards, RewardSet


def assess(
    config: Any, scorers: Mapping[str, Any], policy: Path | None, prompts: PromptSet, out: Path
) -> str:
    """Score `eval.members` seeded ODE images of each of the first `eval.prompts` prompts; returns the table, Markdown.

    policy: a folder that `policy_on_base.find` gave, None for the base model. out gets a line an image as it is scored, and
    table.md and table.json at the end; what is there already is not done again. Ranks share what is missing.
    Raises ValueError before weights load, RewardError when a scorer fails.
    """
    count = min(config.eval.prompts or len(prompts), len(prompts))
    runtime = Runtime(config.model.dtype, (), str(out))
    score_table = ScoreTable(
        out, _settings(config, scorers, policy, prompts.prompts[:count]), runtime.rank
    )
    ids, members = samples(count, config.eval.members)
    done = score_table.read()
    missing = [
        i
        for i, sample in enumerate(zip(ids.tolist(), members.tolist(), strict=True))
        if sample not in done
    ]
    runtime.accelerator.wait_for_everyone()  # every rank has seen what is missing before any rank adds to it
    if done:
        runtime.say(f"{len(ids) - len(missing)} of {len(ids)} images are scored already")
    own = missing[runtime.rank :: runtime.world_size]
    if own:
        with contextlib.closing(RewardSet(scorers)) as rewards:
            rewards.check_prompts(prompts.prompts[:count], prompts.metadata[:count])
            backbone = policy_on_base.PolicyOnBase(config.model, runtime, policy).backbone
            waiting: deque[tuple[list[Sample], Future[Rewards]]] = deque()
            drawn = sample_images(runtime, backbone, prompts, ids[own], members[own], config=config)
            for batch, pixels, finite in drawn:
                batch_samples = list(
                    zip(batch.group_id.tolist(), batch.member.tolist(), strict=True)
                )
                waiting.append(
                    (batch_samples, rewards.submit(pixels, batch.prompts, batch.metadata, finite))
                )
                if len(waiting) > 1:  # one batch is scored beside the sampling of the next
                    _write(score_table, rewards, *waiting.popleft())
            for entry in waiting:
                _write(score_table, rewards, *entry)
    runtime.accelerator.wait_for_everyone()
    scores = score_table.read()
    rows = summarise(scores, prompts.prompts, prompts.metadata, macros(scorers))
    table = as_markdown(rows)
    if len(scores) < len(ids):
        runtime.say(
            f"{len(ids) - len(scores)} of {len(ids)} images have no score; the same command tries them again"
        )
    if runtime.is_main:
        (out / "table.json").write_text(json.dumps(rows, indent=1))
        (out / "table.md").write_text(table + "\n")
        runtime.say(f"{table}\nwritten to {out}")
    runtime.leave()
    return table


def _write(
    score_table: ScoreTable, rewards: RewardSet, scored: list[Sample], future: Future[Rewards]
) -> None:
    """Into the score_table what has a score; the rest is tried again by the next call."""
    done = future.result()
    rewards.settle()
    had = [i for i, missing in enumerate(done.total.isnan().tolist()) if not missing]
    columns = columns_of([done], done.scores, done.extras)
    score_table.append(
        [scored[i] for i in had], {name: column[had] for name, column in columns.items()}
    )


def _settings(
    config: Any, scorers: Mapping[str, Any], policy: Path | None, prompts: list[str]
) -> dict[str, Any]:
    """All that the scores depend on; batch sizes and ranks are not among it."""
    fields = (
        "type",
        "path",
        "revision",
        "dtype",
        "height",
        "width",
        "max_sequence_length",
        "vae_dtype",
    )
    return {
        "model": {name: getattr(config.model, name) for name in fields},
        "policy": policy_on_base.digest(policy) if policy else "base",
        "steps": config.eval.steps,
        "guidance_scale": config.sample.guidance_scale,
        "members": config.eval.members,
        "seed": config.seed,
        "scorers": scorers,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
