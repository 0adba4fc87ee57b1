"""What an update need not compute: passes without a gradient, the frozen model's means again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo.train.update import GradientError, Updater
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


@pytest.mark.parametrize("beta", [0.0, 1e-2])
def test_steps_in_one_backward_pass_descend_like_one_after_the_other(
    smoke: Smoke, beta: float
) -> None:
    """Two rollout batches of four, two steps: as 4 passes of 4 rows, as 16 rows, as 12 and 4."""
    fields = {"train__beta": beta, "train__updates_per_epoch": 1, "train__inner_epochs": 2}
    fields |= {"sample__guidance_scale": 2.0, "train__learning_rate": 1e-2}
    advantages = [
        torch.tensor([[0.5, -1.0], [-0.5, 2.0], [1.5, 1.0], [-1.5, -1.0]]),
        torch.ones(4, 2),
    ]
    found = {}
    for rows in (0, 16, 12):
        trainer = Trainer(smoke(run_name=f"rows-{rows}", train__batch_size=rows, **fields))
        rollouts = [
            p.rollout
            for p in trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=False)
        ]
        seen = count(trainer)
        reports = [
            trainer.updater.step(rollouts, advantages, fresh=fresh) for fresh in (True, False)
        ]
        weights = {
            name: p.detach().clone() for name, p in trainer.learner.policy.parameters.items()
        }
        found[rows] = reports[1], weights, [len(x) for x in seen]
        trainer.rewards.close()
    policy = {0: [4] * 4, 16: [16], 12: [12, 4]}
    for rows, (report, weights, forwards) in found.items():
        made = policy[rows] if beta == 0 else [n for n in policy[rows] for _ in range(2)]
        assert forwards == made + policy[rows], (
            "the frozen model's means are kept for the second pass"
        )
        for name in ("loss", "policy", "kl", "grad_norm", "approx_kl"):
            assert report[name] == pytest.approx(found[0][0][name], rel=2e-2, abs=1e-7), (
                rows,
                name,
            )
        moved = [name for name in weights if "lora_B" in name]
        apart = sum((weights[name] - found[0][1][name]).norm() ** 2 for name in moved) ** 0.5
        assert apart < 5e-2 * sum(found[0][1][name].norm() ** 2 for name in moved) ** 0.5


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
    """Weights, the last report and the number of forwards after `rounds` updates of one batch of 4.

    lost: a sample whose states are NaN from the second on.
    """
    trainer = Trainer(config)
    groups = list(range(trainer.plan.groups))
    batch = trainer._roll_out(0, groups, keep_images=False)[0].rollout
    if lost is not None:
        batch.states[lost, 1:] = batch.velocities[lost, 1:] = float("nan")
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
    everything = [[(0, 0)], [(0, 1)]]
    monkeypatch.setattr(Updater, "_parts", lambda self, advantages: everything)
    same, full, all_forwards = updated(smoke(run_name="b", train__beta=beta), advantages, 2)
    assert all(torch.equal(weights[name], same[name]) for name in same)
    for name in ("loss", "policy", "grad_norm"):
        assert report[name] == pytest.approx(full[name], abs=1e-9)
    made = 2 * max(1, 2 - len(zero))
    assert (forwards, all_forwards) == ((made, 4) if beta == 0 else (8, 8))


@pytest.mark.parametrize("zero", [[0], [1], [0, 1]])
def test_ranks_meet_at_the_boundaries_before_they_add_their_gradients(
    smoke: Smoke, zero: list[int]
) -> None:
    """A rank with nothing left to compute would add gradients while others are at a boundary."""
    trainer = Trainer(smoke(train__updates_per_epoch=1, sample__batch_size=4))
    batches = [
        p.rollout for p in trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=False)
    ]
    events: list[str] = []
    accelerator, backward = trainer.updater.accelerator, trainer.updater.accelerator.backward
    no_sync = accelerator.no_sync

    def noted_backward(loss: torch.Tensor) -> None:
        events.append("backward")
        backward(loss)

    def noted_no_sync(model: Any) -> Any:
        events.append("alone")
        return no_sync(model)

    trainer.updater.boundary = lambda: events.append("boundary")
    accelerator.backward, accelerator.no_sync = noted_backward, noted_no_sync  # type: ignore[method-assign]
    advantages = [torch.full((4, 2), float(batch not in zero)) for batch in range(2)]
    trainer.updater.step(batches, advantages, fresh=True)
    trainer.rewards.close()
    assert events.count("boundary") == 2
    together = [
        i for i, event in enumerate(events) if event == "backward" and events[i - 1] != "alone"
    ]
    assert together == [len(events) - 1] and "boundary" not in events[together[0] :]


def test_the_frozen_model_is_asked_once(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = torch.tensor([[0.5, -1.0], [-0.5, 2.0], [1.5, 0.0], [-1.5, -1.0]])
    fields = {"train__beta": 10.0, "train__learning_rate": 1e-2}
    once = updated(smoke(run_name="once", train__inner_epochs=3, **fields), advantages, 3)
    again = updated(smoke(run_name="again", train__inner_epochs=1, **fields), advantages, 3)
    assert (once[2], again[2]) == (3 * 2 + 2, 3 * 2 + 3 * 2)
    assert once[1] == again[1] and once[1]["kl"] > 0
    assert all(torch.equal(once[0][name], again[0][name]) for name in again[0])


@pytest.mark.parametrize("beta", [0.0, 1e-2])
def test_a_sample_that_overflowed_trains_nothing_and_the_others_as_ever(
    smoke: Smoke, beta: float
) -> None:
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
        missing = one.finish().total.isnan()
        assert missing.any() and not missing.all()
    trainer.rewards.close()


def poison(trainer: Trainer, updates: set[int]) -> list[float]:
    """Make the gradient of one weight NaN in these updates, counted from 1; returns the norms."""
    step, norms = trainer.updater.step, []
    number = 0

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan if number in updates else gradient

    def counted(*arguments: Any, **options: Any) -> dict[str, float]:
        nonlocal number
        number += 1
        report = step(*arguments, **options)
        norms.append(report["grad_norm"])
        return report

    trainer.learner.parameters[0].register_hook(poisoned)
    trainer.updater.step = counted  # type: ignore[method-assign]
    return norms


def values(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.learner.parameters]


def test_a_gradient_that_is_nan_costs_its_update_alone(
    smoke: Smoke, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke(train__max_skipped=1)
    trainer = Trainer(config)
    norms = poison(trainer, {1, 3})
    trainer.run()
    assert [norm != norm for norm in norms] == [True, False, True, False]
    lines = (trainer.folder / "metrics.jsonl").read_text().splitlines()
    assert [line["skipped"] for line in map(json.loads, lines) if line["kind"] == "train"] == [
        0.5,
        0.5,
    ]
    assert all(value.isfinite().all() for value in values(trainer)) and trainer.learner.updates == 4
    assert "update 3 is skipped: its gradient is not finite" in capsys.readouterr().out


def test_too_many_in_a_row_stop_the_run_and_nothing_has_moved(smoke: Smoke) -> None:
    trainer = Trainer(smoke(train__max_skipped=1))
    before = values(trainer)
    poison(trainer, {1, 2, 3, 4})
    with pytest.raises(
        GradientError, match=r"2 updates in a row .* train.max_skipped = 1 allows 1"
    ):
        trainer.run()
    assert all(torch.equal(old, new) for old, new in zip(before, values(trainer), strict=True))


def test_skipped_updates_are_counted_across_a_resume(smoke: Smoke) -> None:
    trainer = Trainer(smoke(epochs=1, train__max_skipped=2))
    poison(trainer, {1, 2})
    trainer.run()
    trainer = Trainer(smoke(epochs=2, train__max_skipped=2))
    poison(trainer, {1})
    with pytest.raises(GradientError, match="3 updates in a row"):
        trainer.run()


def test_a_forward_pass_that_is_nan_is_a_skipped_update_and_no_mismatch(smoke: Smoke) -> None:
    trainer = Trainer(smoke())
    (batch, *_) = [
        p.rollout for p in trainer._roll_out(0, list(range(trainer.plan.groups)), keep_images=False)
    ]
    trainer.rewards.close()
    batch.cond.pooled[1] = torch.nan
    before = values(trainer)
    report = trainer.updater.step([batch], [torch.ones(4, 2)], fresh=True)
    assert report["skipped"] == 1 and math.isnan(report["ratio_dev"])
    assert all(torch.equal(old, new) for old, new in zip(before, values(trainer), strict=True))
