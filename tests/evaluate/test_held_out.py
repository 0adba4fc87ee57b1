"""One evaluation for training and for scripts/evaluate.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo import models
from tp_grpo.data import prompts
from tp_grpo.evaluate.held_out import evaluate, samples
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.rewards.reward_set import RewardError, Rewards, RewardSet
from tp_grpo.settings import Settings
from tp_grpo.types import PromptBatch

BRIGHTNESS = "tests.scorers:Brightness"


@pytest.fixture
def setting(smoke: Callable[..., ConfigDict], tmp_path: Path) -> tuple[Any, ...]:
    """Runtime, backbone, prompts and settings: 3 prompts, 2 images each, batches of 4."""
    config = Settings.read(
        smoke(eval__prompts=3, eval__members=2, eval__batch_size=4, eval__images=5, eval__steps=1)
    )
    runtime = Runtime("fp32", (), str(tmp_path))
    backbone = models.load(config.model, runtime.device)
    return runtime, backbone, prompts.load(config.prompts.eval, field="prompts.eval"), config


def test_samples_are_all_first_members_then_all_second() -> None:
    assert samples(2, 2) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_scores_and_images_are_in_the_order_of_the_samples(setting: tuple[Any, ...]) -> None:
    runtime, backbone, known, config = setting
    calls: list[str] = []
    result = evaluate(
        runtime,
        backbone,
        RewardSet({BRIGHTNESS: 1.0}),
        known,
        config=config,
        boundary=lambda: calls.append("boundary"),
        keep=lambda batch, scored: calls.append(f"keep {len(scored.total)}"),
    )
    assert calls == ["boundary", "boundary", "keep 4", "keep 2"]
    assert result.prompts == known.prompts[:3] * 2
    assert result.images.shape[0] == 5
    brightness = torch.from_numpy(result.images).float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(result.scores[BRIGHTNESS][:5], brightness)
    torch.testing.assert_close(result.scores["total"], result.scores[BRIGHTNESS])


def test_chosen_samples_get_the_scores_they_have_among_all(setting: tuple[Any, ...]) -> None:
    runtime, backbone, known, config = setting
    rewards = RewardSet({BRIGHTNESS: 1.0})
    whole = evaluate(runtime, backbone, rewards, known, config=config).scores["total"]
    chosen = [(2, 1), (0, 0)]
    part = evaluate(runtime, backbone, rewards, known, config=config, chosen=chosen)
    torch.testing.assert_close(part.scores["total"], whole[[5, 0]], rtol=0, atol=1e-3)


def test_a_broken_scorer_ends_a_standing_evaluation_at_its_batch(setting: tuple[Any, ...]) -> None:
    runtime, backbone, known, config = setting
    rewards = RewardSet({"tests.scorers:Raises": {"calls": 0, "error": "TypeError"}})
    kept: list[int] = []

    def keep(batch: PromptBatch, scored: Rewards) -> None:
        kept.append(len(scored.total))
        rewards.settle()

    with pytest.raises(RewardError, match="failed with TypeError"):
        evaluate(runtime, backbone, rewards, known, config=config, keep=keep)
    assert kept == [4]


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_a_scorer_of_groups_gets_a_prompt_s_images_for_any_batch_size(
    setting: tuple[Any, ...], batch_size: int
) -> None:
    runtime, backbone, known, config = setting
    single = RewardSet({BRIGHTNESS: 1.0})
    plain = evaluate(runtime, backbone, single, known, config=config)
    brightness = plain.scores["total"].reshape(2, 3)  # members x prompts
    contrast = "tests.scorers:Contrast"
    rewards = RewardSet({BRIGHTNESS: 1.0, contrast: {"weight": 1.0, "size": 2}})
    config = replace(config, eval=replace(config.eval, batch_size=batch_size))
    kept: list[tuple[int, int]] = []

    def keep(batch: PromptBatch, scored: Rewards) -> None:
        kept.extend(zip(batch.group_id.tolist(), batch.member.tolist(), strict=True))

    result = evaluate(runtime, backbone, rewards, known, config=config, keep=keep)
    torch.testing.assert_close(
        result.scores[BRIGHTNESS], plain.scores[BRIGHTNESS], rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        result.scores[contrast], (brightness - brightness.mean(0)).flatten(), rtol=0, atol=1e-3
    )
    assert result.prompts == plain.prompts and kept == [(p, m) for p in range(3) for m in range(2)]
    assert result.images.shape == plain.images.shape
    assert np.abs(result.images.astype(int) - plain.images).max() <= 1, "the same, in one order"
