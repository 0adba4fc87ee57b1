"""What an update need not compute: micro-batches without a gradient, and the frozen model's velocities again."""

from __future__ import annotations

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


def updated(config: ConfigDict, advantages: torch.Tensor, rounds: int) -> tuple[dict, dict, int]:
    """Weights, the last report and the number of forwards after `rounds` updates of one rollout batch of four."""
    trainer = Trainer(config)
    (batch, *_) = [p.finish()[0] for p in trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=False)]
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
