"""A real epoch makes exactly the evaluations, decoded and scored images that the plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


class Counts:
    """What goes through the transformer while sampling, through the VAE and through the scorer."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.trained: list[int] = []
        self.decoded = self.scored = 0
        vae, scorer = trainer.backbone.pipeline.vae, trainer.rewards.scorers["shapes"]  # type: ignore[attr-defined]
        trainer.backbone.transformer.register_forward_pre_hook(self._forward, with_kwargs=True)
        decode = vae.decode

        def counted_decode(x: torch.Tensor, *rest: Any, **options: Any) -> Any:
            self.decoded += len(x)
            return decode(x, *rest, **options)

        def counted_score(images: np.ndarray, *rest: Any) -> Any:
            self.scored += len(images)
            return scorer(images, *rest)

        monkeypatch.setattr(vae, "decode", counted_decode)
        trainer.rewards.scorers["shapes"] = counted_score  # type: ignore[assignment]

    def _forward(self, module: Any, arguments: Any, options: Any) -> None:
        (self.trained if torch.is_grad_enabled() else self.rows).append(
            len(options["hidden_states"])
        )


# T = 4, K = 2, 8 trajectories in batches of 4, a group each; sigmas 1, 0.67, 0.33, 0.001.
CASES: list[tuple[dict[str, Any], int, int]] = [
    ({}, 4 + 3 + 2, 3),
    ({"sample__batch_size": 2, "sample__max_rows": 3}, 9, 3),
    ({"sample__completion": "reuse"}, 3 + 2 + 1, 3),
    ({"sample__completion": "multistep", "sample__completion_steps": 2}, 3 + 1 + 1, 3),
    ({"sample__completion": "strided", "sample__completion_stride": 2}, 3 + 1 + 0, 3),
    ({"sample__completion": "tweedie"}, 3, 3),
    ({"sample__branch_from": 1}, 4 + 2, 2),
    ({"sample__branch_every": 2}, 4 + 3, 2),
    ({"credit__name": "value", "credit__lam": 0.5}, 9, 3),
    ({"credit__name": "terminal"}, 4, 1),
]


@pytest.mark.parametrize("fields, nfe, ladder", CASES, ids=lambda case: str(case))
def test_an_epoch_costs_what_the_plan_says(
    smoke: Smoke, fields: dict[str, Any], nfe: int, ladder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(smoke(**fields))
    counts, plan = Counts(trainer, monkeypatch), trainer.plan
    trainer._epoch(0)
    trainer.rewards.close()
    assert (plan.nfe, plan.ladder) == (nfe, ladder)
    assert sum(counts.rows) == plan.epoch_nfe == 8 * nfe
    assert counts.decoded == counts.scored == plan.epoch_images == 8 * ladder
    assert max(counts.rows) <= max(4, trainer.config.sample.max_rows)
    assert sum(counts.trained) <= 8 * len(plan.window), (
        "a batch without an advantage at a step has nothing to learn"
    )


# A batch of 4 has a call at each of 4 steps; 4 rows of branches come at step 1, 8 at 2 and 3.
@pytest.mark.parametrize("max_rows, branches", [(3, 2 + 3 + 3), (4, 1 + 2 + 2), (8, 1 + 1 + 1)])
def test_an_epoch_s_calls_are_as_few_as_the_rows_allow(
    smoke: Smoke, max_rows: int, branches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(smoke(sample__max_rows=max_rows, train__beta=1e-2))
    counts = Counts(trainer, monkeypatch)
    trainer._epoch(0)
    trainer.rewards.close()
    frozen = [4] * 4  # the KL's, at both steps of both batches
    assert counts.trained == [4] * 4, "with a KL term nothing is left out"
    assert (len(counts.rows) - len(frozen), sum(counts.rows) - sum(frozen)) == (
        2 * (4 + branches),
        8 * 9,
    )


@pytest.mark.parametrize("batch_size, baselines", [(8, 2), (4, 2), (2, 4)])
def test_a_common_latent_saves_the_members_baselines(
    smoke: Smoke, batch_size: int, baselines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline of 3 evaluations beside its birth, once for each group in each rollout batch."""
    fields = {
        "sample__same_latent": True,
        "sample__batch_size": batch_size,
        "train__updates_per_epoch": 1,
    }
    trainer = Trainer(smoke(**fields))
    counts, plan = Counts(trainer, monkeypatch), trainer.plan
    pending = trainer._roll_out(0, list(range(plan.groups)), keep_images=True)
    rewards = [p.finish() for p in pending]
    trainer.rewards.close()
    assert sum(counts.rows) == plan.epoch_nfe == 8 * 9 - 3 * (8 - baselines)
    assert counts.decoded == counts.scored == plan.epoch_images == 8 * 3 - (8 - baselines)
    ladder = torch.cat([r.total for r in rewards])
    batches = trainer._batches(list(range(plan.groups)))
    group = torch.cat([batch.group_id for batch in batches])
    start = torch.cat([p.rollout.states[:, 0] for p in pending])
    for g in group.unique():
        assert (start[group == g] == start[group == g][0]).all()
        torch.testing.assert_close(
            ladder[group == g, 0].std(), torch.tensor(0.0), atol=1e-2, rtol=0
        )
    assert not torch.equal(start[group == group[0]][0], start[group != group[0]][0])
    assert ladder.shape == (8, 3)
    assert all(p.images is not None and p.images.shape[1] == 3 for p in pending)
