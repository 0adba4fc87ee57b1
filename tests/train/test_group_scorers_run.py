"""An epoch of each family of methods with a scorer of groups, beside one of single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo import trainer as module
from tp_grpo.trainer import Trainer

BRIGHTNESS, CONTRAST = "tests.scorers:Brightness", "tests.scorers:Contrast"
SMALL = {"sample__group_size": 4, "eval__members": 2, "train__learning_rate": 1e-3}


def build(smoke: Callable[..., ConfigDict], algorithm: str, weights: dict[str, float]) -> Trainer:
    config = smoke(algorithm, **SMALL)
    with config.unlocked():
        config.rewards.scorers = ConfigDict(weights, allow_dotted_keys=True)
    return Trainer(config)


@pytest.mark.parametrize("algorithm", ["tp_grpo", "shared_state", "nft", "dgpo"])
def test_every_image_is_compared_with_its_group(
    smoke: Callable[..., ConfigDict], algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[Any] = []

    def kept(*arguments: Any) -> Any:
        gathered.append(real(*arguments))
        return gathered[-1]

    real = module.gather
    monkeypatch.setattr(module, "gather", kept)
    trainer = build(smoke, algorithm, {BRIGHTNESS: 0.5, CONTRAST: 1.0})
    trainer._epoch(0)
    trainer.rewards.close()
    (samples,) = gathered
    bright, contrast = samples.scores[BRIGHTNESS], samples.scores[CONTRAST]
    assert bright.shape == (trainer.plan.images, trainer.plan.ladder)
    groups = bright.reshape(trainer.plan.groups, 4, -1)
    want = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(contrast, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(samples.ladder, 0.5 * bright + contrast)
    assert (samples.extras[f"{CONTRAST}/share"] == 0.25).all()


def test_without_weight_it_is_asked_in_evaluations_alone(smoke: Callable[..., ConfigDict]) -> None:
    trainer = build(smoke, "tp_grpo", {BRIGHTNESS: 1.0, CONTRAST: 0.0})
    scorer: Any = trainer.rewards.scorers[CONTRAST]
    trainer._epoch(0)
    assert scorer.calls == []
    assert f"{CONTRAST}/share" in trainer._evaluate(1)
    assert scorer.calls
    trainer.rewards.close()


def test_groups_of_one_are_refused_before_weights_load(
    smoke: Callable[..., ConfigDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.models, "load", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setitem(SMALL, "eval__members", 1)
    with pytest.raises(ValueError, match=r"eval\.members = 1: .*Contrast compares the images"):
        build(smoke, "tp_grpo", {CONTRAST: 1.0})
