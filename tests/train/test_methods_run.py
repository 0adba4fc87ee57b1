"""Every method end to end on the embedded model: it trains, resumes, and costs what it should."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file
from torch import Tensor

from tp_grpo.store import checkpoint
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
QUICK = {"eval__every": 9, "eval__prompts": 1, "eval__steps": 2, "tracking__images_every": 9}
LAGGING = {"objective__old_ramp": 0.4, "objective__old_max": 0.7}
SPREAD = {"sample__fork": "spread", "sample__steps": 5, "sample__window_size": 3}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared_state": ("shared_state", {}),
    "shared_state grpo": ("shared_state", {"objective__name": "grpo", "train__beta": 1e-2}),
    "nft": ("nft", {}),
    "nft lagging": ("nft", {**LAGGING, "train__beta": 1e-2}),
    "elbo_pg": ("elbo_pg", {}),
    "elbo_pg ratio": ("elbo_pg", {"objective__elbo_form": "ratio"}),
    "awm": ("awm", {"train__beta": 1e-2}),
    "dgpo": ("dgpo", {}),
    "guard": ("flow_grpo", {"objective__name": "guard"}),
    "dppo": ("flow_grpo", {"objective__name": "dppo", "train__inner_epochs": 2}),
    "matching": ("flow_grpo", {"objective__name": "matching"}),
    "matching steps": ("tp_grpo", {"objective__name": "matching"}),
    "random window": ("flow_grpo", {"sample__window": "random", "sample__window_size": 1}),
}


def quick(smoke: Smoke, algorithm: str, **fields: Any) -> ConfigDict:
    return smoke(algorithm, **QUICK | {"run_name": "run"} | fields)


def lines(config: ConfigDict, kind: str = "train") -> list[dict[str, Any]]:
    text = (Path(config.output_dir) / config.run_name / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def weights(config: ConfigDict, epoch: int) -> dict[str, Tensor]:
    folder = Path(config.output_dir) / config.run_name / "checkpoints" / f"epoch-{epoch}"
    return load_file(folder / checkpoint.WEIGHTS)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("algorithm, fields", RUNS.values(), ids=RUNS)
def test_it_trains_two_epochs_and_counts_the_evaluations_of_its_plan(
    smoke: Smoke, algorithm: str, fields: dict[str, Any]
) -> None:
    config = quick(smoke, algorithm, **fields)
    trainer = Trainer(config)
    planned: list[int] = []
    draw = trainer.forks.draw

    def noted(epoch: int, groups: list[int]) -> list[int]:
        forks = draw(epoch, groups)
        planned.append(trainer.plan.evaluations(forks))
        return forks

    trainer.forks.draw = noted  # type: ignore[method-assign]
    before = [p.detach().clone() for p in trainer.learner.parameters]
    trainer.run()
    train = lines(config)
    assert [line["epoch"] for line in train] == [1, 2]
    for line, evaluations in zip(train, planned, strict=True):
        assert line["evaluations_rollout"] == evaluations
        assert line["grad_norm"] > 0
        assert line["skipped"] == 0
        assert line.get("ratio_dev", 0.0) == 0, "the unmoved policy has ratio 1 bit for bit"
        names = line.keys() - {name for name in line if "/" in name}  # a score's parts may be rare
        assert all(isinstance(line[n], str) or math.isfinite(line[n]) for n in names)
    assert [line["nfe"] for line in train] == [planned[0], sum(planned)]
    after = trainer.learner.parameters
    assert all(value.isfinite().all() for value in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_objective_without_velocities_of_sampling_has_no_ratio_to_check(smoke: Smoke) -> None:
    config = quick(smoke, "nft", epochs=1)
    Trainer(config).run()
    assert "ratio_dev" not in lines(config)[0]


@pytest.mark.parametrize(
    "algorithm, fields",
    [("shared_state", SPREAD), ("nft", LAGGING), ("awm", {})],
    ids=["spread", "old policy", "average"],
)
def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(
    smoke: Smoke, algorithm: str, fields: dict[str, Any]
) -> None:
    straight = quick(smoke, algorithm, run_name="straight", epochs=2, **fields)
    Trainer(straight).run()
    Trainer(quick(smoke, algorithm, run_name="twice", epochs=1, **fields)).run()
    resumed = Trainer(twice := quick(smoke, algorithm, run_name="twice", epochs=2, **fields))
    resumed.run()
    assert not same(weights(straight, 2), weights(straight, 1))
    assert same(weights(twice, 2), weights(straight, 2))
    for name in ("reward", "loss", "grad_norm", "nfe"):
        one, other = ([line[name] for line in lines(c)] for c in (twice, straight))
        assert one == other, name


def test_the_spread_and_the_old_policy_are_what_a_resumed_run_goes_by(smoke: Smoke) -> None:
    """Without them the runs above would differ: the forks and the samples depend on them."""
    config = quick(smoke, "shared_state", epochs=1, **SPREAD)
    Trainer(config).run()
    trainer = Trainer(quick(smoke, "shared_state", epochs=2, **SPREAD))
    assert trainer.learner.spread.isnan().all()
    trainer.run_folder.restore(trainer.learner)
    known = [name for name in lines(config)[0] if name.startswith("spread_")]
    assert known
    for name in known:
        step = int(name.removeprefix("spread_"))
        assert trainer.learner.spread[step].item() == pytest.approx(lines(config)[0][name])
    trainer.rewards.close()
    Trainer(quick(smoke, "nft", run_name="lags", epochs=1, **LAGGING)).run()
    trainer = Trainer(quick(smoke, "nft", run_name="lags", epochs=2, **LAGGING))
    trainer.run_folder.restore(trainer.learner)
    trainer.rewards.close()
    assert not trainer.learner.old.is_policy
    assert trainer.learner.old.weights is not None
    parameters = trainer.learner.policy.parameters
    apart = [not torch.equal(old, parameters[n]) for n, old in trainer.learner.old.weights.items()]
    assert any(apart)


def test_a_policy_that_lags_samples_and_is_what_the_loss_compares_with(smoke: Smoke) -> None:
    trainer = Trainer(quick(smoke, "nft", **LAGGING))
    old, parameters = trainer.learner.old, trainer.learner.policy.parameters
    roll_out, loss = trainer._roll_out, trainer.updater.objective.loss
    sampling: list[bool] = []
    compared: list[float] = []

    def noted_roll_out(*arguments: Any, **options: Any) -> Any:
        assert old.weights is not None
        sampling.append(all(torch.equal(parameters[n], w) for n, w in old.weights.items()))
        return roll_out(*arguments, **options)

    def noted_loss(points: Any, v: Any, **options: float) -> Any:
        compared.append((v.policy - v.old).abs().max().item())
        return loss(points, v, **options)

    trainer._roll_out = noted_roll_out  # type: ignore[method-assign]
    trainer.updater.objective = replace(trainer.updater.objective, loss=noted_loss)
    trainer.run()
    assert sampling == [True, True]
    first, second = compared[: len(compared) // 2], compared[len(compared) // 2 :]
    assert first[0] == 0, "before the first update they are one"
    assert first[-1] > 0
    assert second[0] > 0, "in the second epoch the old policy lags from the start"


def rolled_out(config: ConfigDict) -> dict[str, Tensor]:
    """An epoch's shared states by field, and its rewards."""
    trainer = Trainer(config)
    groups = trainer._groups(0)
    pending = trainer._roll_out(0, groups, [0, 2, 1, 2], keep_images=False)
    rewards = torch.cat([p.finish().total for p in pending])
    trainer.rewards.close()
    names = ("state", "step", "velocity", "candidates", "clean")
    rows = {name: torch.cat([getattr(p.rollout, name) for p in pending]) for name in names}
    return rows | {"rewards": rewards}


@pytest.mark.parametrize("batch_size, max_rows", [(1, 8), (1, 3), (2, 5)])
def test_neither_batches_nor_max_rows_change_what_shared_states_sample(
    smoke: Smoke, batch_size: int, max_rows: int
) -> None:
    fields = {**SPREAD, "train__updates_per_epoch": 1}
    whole = rolled_out(quick(smoke, "shared_state", sample__batch_size=4, **fields))
    fields |= {"run_name": "split", "sample__batch_size": batch_size, "sample__max_rows": max_rows}
    split = rolled_out(quick(smoke, "shared_state", **fields))
    assert torch.equal(split["step"], whole["step"])
    for name, rows in whole.items():
        limit = 2e-2 if name == "rewards" else 1e-4
        assert (split[name] - rows).abs().max() < limit, name


def test_batches_of_shared_states_learn_the_same(smoke: Smoke) -> None:
    fields = {"epochs": 1, "sample__fork": "uniform", "train__learning_rate": 1e-3}
    learnt = []
    for batch_size, max_rows, stacked in ((2, 8, 0), (1, 3, 0), (1, 8, 2)):
        config = quick(
            smoke,
            "shared_state",
            run_name=f"b{batch_size}-{max_rows}-{stacked}",
            sample__batch_size=batch_size,
            sample__max_rows=max_rows,
            train__batch_size=stacked,
            **fields,
        )
        Trainer(config).run()
        after = weights(config, 1)
        learnt.append(torch.cat([after[n].flatten() for n in sorted(after) if "lora_B" in n]))
    for other in learnt[1:]:
        assert (other - learnt[0]).norm() < 5e-2 * learnt[0].norm()


def test_groups_of_one_prompt_fork_at_the_steps_that_spread(smoke: Smoke) -> None:
    """The draws follow the running spread, are keyed by prompt, and repeat."""
    trainer = Trainer(quick(smoke, "shared_state", **SPREAD))
    trainer.learner.spread[:] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    groups = list(range(400))
    forks = trainer.forks.draw(3, groups)
    trainer.rewards.close()
    assert 360 < forks.count(2) < 400
    assert set(forks) == {0, 1, 2}
    assert trainer.forks.draw(3, groups) == forks
    assert trainer.forks.draw(4, groups) != forks
    assert trainer.forks.draw(3, groups[::-1]) == forks[::-1]


def test_the_first_step_and_uniform_forks(smoke: Smoke) -> None:
    first = Trainer(quick(smoke, "shared_state", **SPREAD | {"sample__fork": "first"}))
    first.rewards.close()
    assert first.forks.draw(0, [5, 6, 7]) == [0, 0, 0]
    fields = {**SPREAD, "run_name": "uniform", "sample__fork": "uniform"}
    uniform = Trainer(quick(smoke, "shared_state", **fields))
    uniform.rewards.close()
    uniform.learner.spread[2] = 1.0
    drawn = uniform.forks.draw(0, list(range(600)))
    assert min(drawn.count(step) for step in range(3)) > 150


def test_what_an_epoch_learns_of_its_spreads_by_hand(smoke: Smoke) -> None:
    trainer = Trainer(quick(smoke, "shared_state", **SPREAD))
    trainer.rewards.close()
    nan = math.nan
    # Groups of 4: stds 1, 2, unknown (of one reward), and that of 0 and 6.
    reward = torch.tensor([1, 3, 1, 3, 0, 4, 0, 4, nan, 5, nan, nan, 0, nan, 6, nan])
    stats = trainer.forks.learn([0, 0, 1, 2], reward)
    shares = {"fork_0": 0.5, "fork_1": 0.25, "fork_2": 0.25}
    assert stats == pytest.approx({"spread_0": 1.5, "spread_2": 3.0, "fork": 0.75} | shares)
