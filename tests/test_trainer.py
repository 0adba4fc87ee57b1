"""The loop, end to end on the embedded weights: what it leaves behind, what must not change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tp_grpo.rewards.reward_set import RewardError
from tp_grpo.shapes import captions
from tp_grpo.store import checkpoint
from tp_grpo.train.update import RatioError
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


def lines(config: ConfigDict, kind: str) -> list[dict]:
    text = (Path(config.output_dir) / config.run_name / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def weights(config: ConfigDict, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(
        Path(config.output_dir)
        / config.run_name
        / "checkpoints"
        / f"epoch-{epoch}"
        / checkpoint.WEIGHTS
    )


def ladders(config: ConfigDict, epoch: int = 1) -> dict[str, torch.Tensor]:
    return load_file(
        Path(config.output_dir) / config.run_name / "ladders" / f"epoch-{epoch}.safetensors"
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_metrics_ladders_evaluations_adapter_and_report(smoke: Smoke) -> None:
    config = smoke()
    page = Trainer(config).run()
    train, held_out = lines(config, "train"), lines(config, "eval")
    assert [line["epoch"] for line in train] == [1, 2] and [line["epoch"] for line in held_out] == [
        0,
        1,
        2,
    ]
    assert all(line["ratio_dev"] == 0 for line in train), (
        "re-evaluating an unchanged policy must give ratio 1 bit for bit"
    )
    assert train[-1]["updates"] == 4 and train[-1]["grad_norm"] > 0 and train[-1]["skipped"] == 0
    assert not same(weights(config, 1), weights(config, 2))
    kept = ladders(config, 2)
    assert kept["ladder"].shape == (8, 3) and kept["images"].shape == (8, 3, 48, 48, 3), (
        "two groups of four"
    )
    torch.testing.assert_close(
        kept["increment"].sum(1), kept["ladder"][:, -1] - kept["ladder"][:, 0]
    )
    final = kept["ladder"][:, -1].double().view(2, 4)
    told = {
        "reward": final.mean(),
        "shapes": final.mean(),
        "reward_se": final.mean(1).std() / 2**0.5,
    }
    told |= {"group_std": final.std(1, correction=0).mean()}
    assert {name: train[-1][name] for name in told} == pytest.approx(
        {n: v.item() for n, v in told.items()}, rel=1e-6
    )
    html = page.read_text()
    assert "<h3>Trajectories" in html and html.count("data:image/png") > 20


@pytest.mark.parametrize("algorithm, name", [("flow_grpo", "terminal"), ("tp_grpo", "incremental")])
def test_the_other_algorithms_run(smoke: Smoke, algorithm: str, name: str) -> None:
    config = smoke(
        algorithm, credit__name=name, epochs=1, train__beta=1e-2, sample__guidance_scale=2.0
    )
    Trainer(config).run()
    kept, (line,) = ladders(config), lines(config, "train")
    assert kept["ladder"].shape == (8, 1 if name == "terminal" else 3)
    assert not kept["turning"].any() and line["ratio_dev"] == 0
    assert line["kl"] > 0, "the second update's policy has moved from the frozen model"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_size_does_not_change_the_run(smoke: Smoke, batch_size: int) -> None:
    whole, split = (
        smoke(run_name="whole"),
        smoke(run_name="split", sample__batch_size=batch_size, sample__max_rows=3),
    )
    for config in (whole, split):
        Trainer(config).run()
    first, second = ladders(whole), ladders(split)
    torch.testing.assert_close(first["ladder"], second["ladder"], rtol=0, atol=2e-2)
    assert (first["ladder"] - second["ladder"]).abs().median() < 1e-5
    moved = [
        name for name in weights(whole, 1) if "lora_B" in name
    ]  # they start at zero: their norm is what was learnt
    distance = sum((weights(whole, 1)[n] - weights(split, 1)[n]).norm() ** 2 for n in moved) ** 0.5
    length = sum(weights(whole, 1)[n].norm() ** 2 for n in moved) ** 0.5
    print(f"relative distance of what was learnt: {distance / length:.1e}")
    assert distance / length < 5e-2


@pytest.mark.parametrize(
    "option", [{"sample__store_on_cpu": True}, {"model__gradient_checkpointing": True}]
)
def test_what_saves_memory_does_not_change_the_run(smoke: Smoke, option: dict) -> None:
    plain, saving = smoke(run_name="plain", epochs=1), smoke(run_name="saving", epochs=1, **option)
    for config in (plain, saving):
        Trainer(config).run()
    first, second = weights(plain, 1), weights(saving, 1)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)
    assert all(line["ratio_dev"] == 0 for line in lines(saving, "train"))


def test_prompts_encoded_ahead_are_never_encoded_again(smoke: Smoke, tmp_path: Path) -> None:
    plain, ahead = smoke(run_name="plain", epochs=1), smoke(run_name="ahead", epochs=1)
    ahead.model.update(text_encoders="drop", embeddings_cache=str(tmp_path / "embeddings"))
    ahead.prompts.update(train=str(tmp_path / "some.jsonl"), eval=str(tmp_path / "some.jsonl"))
    plain.prompts.update(ahead.prompts)
    some = [{"prompt": prompt, **metadata} for prompt, metadata in captions.train()[:20]]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, some)))
    Trainer(plain).run()
    trainer = Trainer(ahead)
    assert trainer.backbone.text._pipeline is None  # type: ignore[attr-defined]
    trainer.backbone.text.load = lambda: pytest.fail("an encoder was loaded again")  # type: ignore[attr-defined]
    trainer.run()
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 21, (
        "20 prompts and the empty one"
    )
    assert same(weights(plain, 1), weights(ahead, 1))


def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(smoke: Smoke) -> None:
    undisturbed = smoke(run_name="undisturbed", epochs=3)
    Trainer(undisturbed).run()
    broken = smoke(run_name="broken", epochs=3)
    trainer = Trainer(broken)
    scorer = trainer.rewards.scorers["shapes"]
    calls = []

    def fails_in_epoch_3(*batch: object) -> object:
        calls.append(batch)
        if len(calls) > 8:  # evaluations 0, 1, 2 and two epochs of two batches go well
            raise TypeError("no such thing")
        return scorer(*batch)  # type: ignore[arg-type]

    trainer.rewards.scorers["shapes"] = fails_in_epoch_3  # type: ignore[assignment]
    with pytest.raises(RewardError, match="'shapes' failed with TypeError: no such thing"):
        trainer.run()
    assert trainer.run_folder.checkpoints.epochs()[-1] == 2
    Trainer(broken).run()
    assert same(weights(broken, 3), weights(undisturbed, 3))
    assert [line["epoch"] for line in lines(broken, "train")] == [1, 2, 3]
    for name in ("reward", "loss", "grad_norm"):
        assert lines(broken, "train")[2][name] == lines(undisturbed, "train")[2][name]
    first, second = (
        load_file(Path(c.output_dir) / c.run_name / "adapter" / "pytorch_lora_weights.safetensors")
        for c in (broken, undisturbed)
    )
    assert same(first, second), "the EMA must resume as well"


def test_a_finished_run_is_not_trained_again_and_can_go_on_longer(smoke: Smoke) -> None:
    config = smoke(epochs=1)
    Trainer(config).run()
    before = weights(config, 1)
    Trainer(config).run()
    assert same(before, weights(config, 1)) and len(lines(config, "train")) == 1
    Trainer(smoke(epochs=2)).run()
    assert [line["epoch"] for line in lines(config, "train")] == [1, 2]


def test_another_setting_is_refused_field_by_field(smoke: Smoke) -> None:
    Trainer(smoke(epochs=1)).run()
    with pytest.raises(
        ValueError, match=r"other settings(.|\n)*seed: 42 then, 7 now(.|\n)*run_name"
    ):
        Trainer(smoke(seed=7))
    with pytest.raises(ValueError, match="holds a run at epoch 1"):
        Trainer(smoke(checkpoint__resume="never"))


def test_a_scorer_that_gives_too_many_nans_stops_the_run(smoke: Smoke) -> None:
    config = smoke()
    with config.unlocked():
        config.rewards.scorers = ConfigDict(
            {"tests.scorers:Gaps": {"every": 4}}, allow_dotted_keys=True
        )
    with pytest.raises(
        RewardError, match=r"no score \(NaN\) for 2 of 8 images, 25%; rewards.max_failed = 0.05"
    ):
        Trainer(config).run()


def test_a_few_nans_cost_only_themselves(smoke: Smoke) -> None:
    config = smoke("flow_grpo", epochs=1, rewards__max_failed=0.5)
    with config.unlocked():
        config.rewards.scorers = ConfigDict(
            {"tests.scorers:Gaps": {"every": 4}}, allow_dotted_keys=True
        )
    Trainer(config).run()
    kept = ladders(config)
    lost = kept["ladder"].isnan()[:, 0]
    assert (
        lost.sum() == 2
        and (kept["advantage"][lost] == 0).all()
        and (kept["advantage"][~lost] != 0).any()
    )
    assert all(value.isfinite().all() for value in weights(config, 1).values())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model__path": "no/such/place"}, "is neither a folder nor a hub id"),
        ({"model__path": "tests"}, "no model_index.json"),
        (
            {"model__path": "no/place"},
            "neither a folder here nor a hub repository that can be read",
        ),
        ({"model__height": 104}, "more than this model's 96 pixels"),
        ({"model__height": 50}, r"model.height = 50 is not a multiple of 8 .* 48 and 56"),
        ({"model__dtype": "fp16"}, "needs a CUDA GPU"),
        ({"model__type": "sd9"}, "'sd9' is not one of sd3"),
        ({"credit__name": "luck"}, "credit.name = 'luck' is not one of terminal"),
        ({"prompts__train": "missing.txt"}, "prompts.train = 'missing.txt': no such file"),
        (
            {"sample__groups_per_epoch": 4000, "sample__batch_size": 8000},
            "prompts.train holds 2594 prompts",
        ),
        ({"tracking__trackers": ("tensorbord",)}, "tensorbord"),
        ({"lora__rank": -1}, "lora.rank = -1"),
        ({"train__optimizer": "sgd"}, "'sgd' is not one of adamw, adamw_8bit"),
        ({"lora__targets": ("attn.to_x",)}, "no module of the transformer is called attn.to_x"),
        ({"train__step_weight": "speed"}, "not one of uniform, velocity"),
        ({"run_name": ""}, "run_name is empty"),
        ({"rewards__scorers": {"shapes": {"weight": 0.0}}}, "every weight is 0"),
    ],
)
def test_bad_input_is_a_clear_value_error(
    smoke: Smoke, fields: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        Trainer(smoke(**fields))


def test_a_policy_that_changed_before_the_update_is_noticed_and_not_trained(smoke: Smoke) -> None:
    trainer = Trainer(smoke())
    update = trainer._update

    def after_a_change(*arguments: Any) -> dict[str, float]:
        with torch.no_grad():
            for parameter in trainer.learner.parameters:
                parameter += 0.05
        return update(*arguments)

    trainer._update = after_a_change  # type: ignore[method-assign]
    with pytest.raises(
        RatioError, match=r"ratio differs from 1 by .* more than train.max_ratio_dev = 0.0001"
    ):
        trainer.run()
    assert not trainer.learner.optimizer.state, "it must stop before it descends"


def test_stopped_before_the_first_checkpoint_begins_again_cleanly(smoke: Smoke) -> None:
    config = smoke(epochs=1)
    trainer = Trainer(config)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    trainer.run_folder.save = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    Trainer(config).run()
    assert len(lines(config, "train")) == 1 and [
        line["epoch"] for line in lines(config, "eval")
    ] == [0, 1]


def test_every_sample_gets_its_own_advantage(smoke: Smoke) -> None:
    trainer = Trainer(smoke(sample__batch_size=2))
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    roll_out, pending = trainer._roll_out, []

    def remember(*arguments: Any, **options: Any) -> list:
        pending.extend(roll_out(*arguments, **options))
        return pending

    def record(rollouts: list, advantages: list[torch.Tensor], *, fresh: bool) -> dict[str, float]:
        ladders = {id(p.rollout): p.finish().total for p in pending}
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            given.extend(zip(ladders[id(rollout)], advantage, strict=True))
        return {"ratio_dev": 0.0, "skipped": 0.0}

    trainer._roll_out = remember  # type: ignore[method-assign]
    trainer.updater.step = record  # type: ignore[assignment, method-assign]
    trainer._epoch(0)
    pairs = {tuple(ladder.tolist()): tuple(advantage.tolist()) for ladder, advantage in given}
    trainer = Trainer(smoke(run_name="again"))
    trainer._epoch(0)
    kept = ladders(trainer.config)
    assert len(given) == 8
    for ladder, advantage in zip(kept["ladder"], kept["advantage"], strict=True):
        nearest = min(pairs, key=lambda known: (torch.tensor(known) - ladder).abs().sum().item())
        torch.testing.assert_close(torch.tensor(pairs[nearest]), advantage, atol=0.05, rtol=0)


def test_training_raises_the_reward(smoke: Smoke) -> None:
    config = smoke("flow_grpo", epochs=6, train__learning_rate=5e-3, eval__every=6, ema__decay=0.5)
    with config.unlocked():
        config.rewards.scorers = ConfigDict(
            {"tests.scorers:Brightness": 1.0}, allow_dotted_keys=True
        )
    Trainer(config).run()
    before, after = lines(config, "eval")
    assert after["total"] > before["total"] + 3 * before["total_se"] / 8**0.5, (before, after)
