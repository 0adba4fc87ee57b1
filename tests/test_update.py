"""What an update need not compute: micro-batches without a gradient, and the frozen model's velocities again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo.trainer import Trainer
from tp_grpo.update import Updater

Smoke = Callable[..., ConfigDict]


def count(trainer: Trainer) -> list[torch.Tensor]:
    """Every training forward from now on, by its latents."""
    seen: list[torch.Tensor] = []
    velocity = trainer.backbone.velocity

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x)
        return velocity(x, *rest)

    trainer.backbone.velocity = counted  # type: ignore[method-assign]
    return seen


def updated(
    config: ConfigDict, advantages: torch.Tensor, rounds: int, lost: int | None = None
) -> tuple[dict, dict, int]:
    """Weights, the last report and the number of forwards after `rounds` updates of one rollout batch of four.

    lost: a sample whose states are NaN from the second on.
    """
    trainer = Trainer(config)
    (batch, *_) = [p.finish()[0] for p in trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=False)]
    if lost is not None:
        batch.trajectory.x[lost, 1:] = batch.trajectory.mean[lost, 1:] = float("nan")
    seen = count(trainer)
    for number in range(rounds):
        report = trainer.updater.step([batch], [advantages], fresh=number == 0)
    weights = {name: p.detach().clone() for name, p in trainer.learner.policy.parameters.items()}
    trainer.rewards.close()
    return weights, report, len(seen)


@pytest.mark.parametrize("beta", [0.0, 1e-2])
@pytest.mark.parametrize("zero", [[0], [1], [0, 1]])
def test_what_has_no_gradient_is_left_out_and_nothing_changes(
    smoke: Smoke, beta: float, zero: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    advantages = torch.tensor([[0.5, -1.0], [-0.5, 2.0], [1.5, 0.0], [-1.5, -1.0]])
    advantages[:, zero] = 0
    weights, report, forwards = updated(smoke(run_name="a", train__beta=beta), advantages, 2)
    everything = [[0, 1]]
    monkeypatch.setattr(Updater, "_parts", lambda self, advantages: everything)
    same, full, all_forwards = updated(smoke(run_name="b", train__beta=beta), advantages, 2)
    assert all(torch.equal(weights[name], same[name]) for name in same)
    for name in ("loss", "policy", "grad_norm"):
        assert report[name] == pytest.approx(full[name], abs=1e-9)
    made = 2 * max(1, 2 - len(zero))
    assert (forwards, all_forwards) == ((made, 4) if beta == 0 else (8, 8))


def test_the_frozen_model_is_asked_once(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = torch.tensor([[0.5, -1.0], [-0.5, 2.0], [1.5, 0.0], [-1.5, -1.0]])
    fields = {"train__beta": 10.0, "train__learning_rate": 1e-2}
    once = updated(smoke(run_name="once", train__inner_epochs=3, **fields), advantages, 3)
    again = updated(smoke(run_name="again", train__inner_epochs=1, **fields), advantages, 3)
    assert (once[2], again[2]) == (3 * 2 + 2, 3 * 2 + 3 * 2)
    assert once[1] == again[1] and once[1]["kl"] > 0
    assert all(torch.equal(once[0][name], again[0][name]) for name in again[0])


@pytest.mark.parametrize("beta", [0.0, 1e-2])
def test_a_sample_that_overflowed_trains_nothing_and_the_others_as_ever(smoke: Smoke, beta: float) -> None:
    advantages = torch.tensor([[0.5, -1.0], [0.0, 0.0], [1.5, 0.0], [-1.5, -1.0]])
    weights, report, _ = updated(smoke(run_name="lost", train__beta=beta), advantages, 1, lost=1)
    assert all(value.isfinite().all() for value in weights.values()) and report["skipped"] == 0
    assert all(map(math.isfinite, report.values())) and report["grad_norm"] > 0
    whole, _, _ = updated(smoke(run_name="whole", train__beta=beta), advantages, 1)
    if beta == 0:
        assert all(torch.allclose(weights[name], whole[name], atol=1e-7) for name in whole)


def test_an_image_that_is_nan_costs_its_ladder_and_leaves_no_mark(smoke: Smoke) -> None:
    trainer = Trainer(smoke(run_name="nan"))
    decode = trainer.backbone.decode

    def overflow(x: torch.Tensor) -> torch.Tensor:
        images = decode(x)
        images[0, :, 3, 3] = float("nan")
        return images

    trainer.backbone.decode = overflow  # type: ignore[method-assign]
    pending = trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=True)
    for one in pending:
        rollout, rewards = one.finish()
        missing = rewards.total.isnan()
        assert missing.any() and not missing.all() and torch.equal(missing, rollout.ladder.isnan())
    trainer.rewards.close()
