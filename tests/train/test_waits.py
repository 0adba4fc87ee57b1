"""The step loops of sampling and of an update never wait for the device, nor copy to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from tests import tiny_models
from tests.tiny_families import FAMILIES
from tests.train.test_update import count
from tests.waits import Reading, Sending
from tp_grpo.method import sampler, shared_state
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models import architecture
from tp_grpo.models.policy import Policy
from tp_grpo.plan import Plan, make_plan
from tp_grpo.settings import Settings
from tp_grpo.train.old_policy import OldPolicy, copies
from tp_grpo.train.rollout import velocity_of
from tp_grpo.train.update import Updater
from tp_grpo.trainer import Trainer
from tp_grpo.types import NoisedImages, Rollout, SharedStates, Trajectories

META = architecture.META
Smoke = Callable[..., ConfigDict]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: bool(x.max() > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
    ],
)
def test_the_meta_device_refuses_to_be_read(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(2, device=META))


@pytest.mark.parametrize(
    "send, count",
    [
        (lambda x: x + torch.tensor([1.0, 2.0], device=META), 1),
        (lambda x: x + torch.ones(2).to(META), 1),
        (lambda x: x.new_tensor([1.0, 2.0]), 1),
        (lambda x: x + torch.ones(2).to(META, non_blocking=True), 0),
        (lambda x: x.where(x > 0, 1.0) + torch.arange(2, device=META), 0),
    ],
)
def test_copies_to_the_device_are_counted(send: Callable[[Tensor], object], count: int) -> None:
    with Sending() as sending:
        send(torch.ones(2, device=META))
    assert sending.count == count


def settings(smoke: Smoke, path: Path, kind: str, algorithm: str, **fields: Any) -> Settings:
    model = {"model__type": kind, "model__path": str(path), "sample__guidance_scale": 2.0}
    return Settings.read(smoke(algorithm, **model, sample__batch_size=4, **fields))


class OnMeta:
    """A backbone, its policy, and an updater on the meta device."""

    def __init__(self, config: Settings) -> None:
        shapes = architecture.read(config.model)
        self.backbone = architecture.build(shapes, config.model)
        real = architecture.build(shapes, config.model, tiny_models.CPU)
        self.backbone.sigmas = lambda steps: real.sigmas(steps).to(META)
        self.plan: Plan = make_plan(config, 1).at(real.sigmas(config.sample.steps).tolist())
        self.rows = self.plan.batch_size
        self.cond = architecture.conditions(shapes, config.model, self.rows)
        policy = Policy(
            self.backbone.transformer,
            rank=2,
            alpha=4,
            targets=self.backbone.lora_targets,
            kl=True,
            frozen=self.backbone.frozen,
        )
        old = OldPolicy(policy, config.objective, copies=any(copies(config)))
        old.is_policy = False
        learner = SimpleNamespace(
            backbone=self.backbone, policy=policy, old=old, lagging=old, runtime=None
        )
        self.updater = Updater(None, learner, self.plan, config)  # type: ignore[arg-type]

    def latents(self, *shape: int) -> Tensor:
        return torch.empty(*shape, *self.backbone.latent_shape, device=META)

    def rollout(self) -> Rollout:
        plan, rows, K = self.plan, self.rows, len(self.plan.window)
        if plan.points == "shared_state":
            G, step = plan.group_size, torch.zeros(rows, dtype=torch.int64, device=META)
            state, v = self.latents(rows), self.latents(rows)
            candidates, clean = self.latents(rows, G), self.latents(rows, G)
            return SharedStates(self.cond, state, step, v, candidates, clean)
        if plan.points == "noised":
            n, group = plan.columns, torch.zeros(rows, dtype=torch.int64, device=META)
            sigmas, clean = torch.empty(rows, n, device=META), self.latents(rows, 1)
            return NoisedImages(self.cond, self.latents(rows, n), sigmas, clean, group)
        clean = self.latents(rows, plan.ladder)
        return Trajectories(self.cond, self.latents(rows, K + 1), self.latents(rows, K), clean)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_waits_for_nothing(name: str, tmp_path: Path, smoke: Smoke) -> None:
    """Trajectories with their branches, and groups that fork at steps of their own."""
    family = FAMILIES[name]
    path = family.save(tmp_path / "model")
    meta = OnMeta(settings(smoke, path, family.type, "tp_grpo"))
    sigmas, rows, window = meta.backbone.sigmas(4), meta.rows, meta.plan.completion.window
    velocity = velocity_of(meta.backbone, sigmas, meta.cond, 2.0)
    options: Any = {"completion": meta.plan.completion, "kind": "sde", "noise_level": 0.7}
    options["max_rows"] = 3
    start, noise = meta.latents(rows), meta.latents(rows, len(window))
    velocity(start, 0, torch.arange(rows))  # Z-Image sends its position embeddings once
    with Sending() as sending:
        sampled = sampler.staircase(velocity, start, sigmas, noise, **options)
    assert sampled.clean.shape[1] == len(window) + 1
    assert sending.count == 0
    candidates = meta.latents(rows, 3)
    for steps in ([0, 0, 0, 1], [2, 0, 1, 2]):
        with Sending() as sending:
            forked = shared_state.shared_states(
                velocity, start, sigmas, candidates, steps=torch.tensor(steps), **options
            )
        assert forked.clean.shape == candidates.shape
        assert sending.count == 3, "the steps and their groups, before the loops"


ALGORITHM = {"grpo": "tp_grpo", "guard": "flow_grpo", "dppo": "flow_grpo"}
CASES = [
    *((ALGORITHM.get(name, name), name) for name in OBJECTIVES if name != "matching"),
    *(("tp_grpo", "matching"), ("shared_state", "matching"), ("shared_state", "grpo")),
]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("algorithm, objective", CASES)
def test_a_training_pass_waits_for_nothing(
    algorithm: str, objective: str, fresh: bool, random_sd3: Path, smoke: Smoke
) -> None:
    fields = {"objective__name": objective, "train__beta": 1e-3, "train__step_weight": "uniform"}
    fields["train__updates_per_epoch"] = 1
    meta = OnMeta(settings(smoke, random_sd3, "sd3", algorithm, **fields))
    images = meta.rows * meta.plan.members
    advantages = [torch.empty(images, meta.plan.credited, device=META) for _ in range(2)]
    rollouts = [meta.rollout(), meta.rollout()]
    last = meta.plan.columns - 1
    with Sending() as sending:
        loss, _ = meta.updater._micro_batch(rollouts, advantages, [(0, 0), (1, last)], fresh=fresh)
        loss.value.backward()
    assert sending.count == 0


@pytest.mark.parametrize("algorithm, objective", [*CASES[:1], *CASES[-3:], ("nft", "nft")])
def test_a_second_pass_over_rollouts_on_the_host_waits_for_nothing(
    algorithm: str, objective: str, random_sd3: Path, smoke: Smoke
) -> None:
    """They lie there as `on_host` lays them, and so does what the frozen model predicted."""
    fields = {"objective__name": objective, "train__beta": 1e-3, "train__updates_per_epoch": 1}
    meta = OnMeta(settings(smoke, random_sd3, "sd3", algorithm, **fields))
    images = meta.rows * meta.plan.members
    advantages = [torch.empty(images, meta.plan.credited, device=META)]
    rollout = meta.rollout()
    held = in_host_memory(rollout)
    latents = torch.empty(meta.rows, *meta.backbone.latent_shape)
    last = meta.plan.columns - 1
    meta.updater._references[held] = {last: latents}
    with Sending() as sending:
        meta.updater._micro_batch([held], advantages, [(0, last)], fresh=False)
    assert sending.count == 0


def in_host_memory(batch: Any) -> Any:
    """Empty tensors in the layout of `types.on_host`."""

    def held(name: str) -> Any:
        value = getattr(batch, name)
        if not isinstance(value, Tensor):
            return in_host_memory(value)
        empty = torch.empty(value.shape, dtype=value.dtype)
        if name not in getattr(batch, "by_column", ()):
            return empty
        return empty.transpose(0, 1).contiguous().transpose(0, 1)

    return type(batch)(**{field.name: held(field.name) for field in dataclasses.fields(batch)})


@pytest.mark.parametrize("algorithm", ["tp_grpo", "shared_state", "nft", "dgpo"])
def test_an_update_reads_as_often_whatever_its_passes(algorithm: str, smoke: Smoke) -> None:
    """The optimizer's counts of steps lie in host memory; the other reads are an update's."""
    reads = {}
    for rows in (0, 64):
        config = smoke(algorithm, run_name=f"rows-{rows}", train__batch_size=rows)
        config.train.updates_per_epoch = 1
        trainer = Trainer(config)
        groups = trainer._groups(0)
        pending = trainer._roll_out(0, groups, trainer.forks.draw(0, groups), keep_images=False)
        rollouts = [p.rollout for p in pending]
        advantages = torch.randn(trainer.plan.images, trainer.plan.credited)
        seen = count(trainer)
        with Reading() as reading:
            trainer.updater.update(0, rollouts, advantages)
        trainer.rewards.close()
        reads[len(seen)] = reading.counts
    (many, first), (few, second) = reads.items()
    assert many > few
    assert first == second
    assert set(first) == {"aten._local_scalar_dense"}
    assert first.total() == 3 + len(trainer.learner.parameters), first
