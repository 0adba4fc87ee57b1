"""`checkpoint.resume`: going back, going on from another run, and being started again by the same command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tp_grpo.shapes import captions
from tp_grpo.store import checkpoint, files
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


def folder(config: ConfigDict) -> Path:
    return Path(config.output_dir) / config.run_name


def saved(config: ConfigDict, epoch: int) -> checkpoint.Checkpoint:
    return checkpoint.load(folder(config) / "checkpoints" / f"epoch-{epoch}")


def same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(a.weights[n], b.weights[n]) for n in a.weights
    )


def logged(config: ConfigDict, kind: str) -> list[int]:
    lines = files.read_lines(folder(config) / "metrics.jsonl")
    return [line["epoch"] for line in lines if line["kind"] == kind]


def test_from_another_run_s_checkpoint_it_goes_the_same_way_and_repeated_it_goes_on(
    smoke: Smoke,
) -> None:
    old = smoke(run_name="old", epochs=3, eval__every=3)
    Trainer(old).run()
    origin = str(folder(old) / "checkpoints" / "epoch-1")
    new = {"run_name": "new", "eval__every": 3, "checkpoint__resume": origin}
    trainer = Trainer(smoke(**new, epochs=2))
    assert trainer.tracker.run_id != saved(old, 1).tracker, "another run has curves of its own"
    trainer.run()
    config = smoke(**new, epochs=3)
    assert (
        same(saved(config, 2), saved(old, 2))
        and logged(config, "train") == [2]
        and logged(config, "eval") == [0, 2]
    )
    trainer = Trainer(config)
    assert trainer.run_folder.origin and trainer.run_folder.origin.epoch == 2, (
        "what was done since is not done again"
    )
    assert trainer.tracker.run_id == saved(config, 2).tracker
    trainer.run()
    assert same(saved(config, 3), saved(old, 3)) and logged(config, "train") == [2, 3]


def test_going_back_forgets_what_came_later_and_begins_new_curves(smoke: Smoke) -> None:
    config = smoke(epochs=3, eval__every=3)
    Trainer(config).run()
    first, last = saved(config, 1), saved(config, 3)
    assert first.tracker == last.tracker
    config.checkpoint.resume = str(folder(config) / "checkpoints" / "epoch-1")
    config.epochs = 2
    Trainer(config).run()
    assert not (folder(config) / "checkpoints" / "epoch-3").exists() and logged(
        config, "train"
    ) == [1, 2]
    assert saved(config, 2).tracker != first.tracker, (
        "trackers cannot be rewound: their steps only grow"
    )
    config.update(epochs=3)
    config.checkpoint.resume = "auto"
    Trainer(config).run()
    assert same(saved(config, 3), last) and saved(config, 3).tracker == saved(config, 2).tracker


def test_fields_that_do_not_matter_may_change(smoke: Smoke) -> None:
    Trainer(smoke(epochs=1)).run()
    fields = {
        "epochs": 2,
        "sample__batch_size": 2,
        "sample__max_rows": 3,
        "eval__batch_size": 3,
        "eval__every": 2,
    }
    fields |= {"train__max_skipped": 3, "checkpoint__keep": 5, "sample__store_on_cpu": True}
    config = smoke(**fields)
    Trainer(config).run()
    assert logged(config, "train") == [1, 2]


@pytest.mark.parametrize(
    "resume, message",
    [
        (
            "no/such",
            r"checkpoint.resume = 'no/such' is no folder; it is auto, never, or a checkpoint such as",
        ),
        ("tests", r"checkpoint tests: there is no state.json"),
    ],
)
def test_a_path_that_is_no_checkpoint_is_an_error(smoke: Smoke, resume: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(smoke(checkpoint__resume=resume))


def test_a_run_that_begins_with_another_s_weights_keeps_what_they_are_of(smoke: Smoke) -> None:
    old = smoke(run_name="old", epochs=1)
    Trainer(old).run()
    origin = str(folder(old) / "checkpoints" / "epoch-1")
    with pytest.raises(
        ValueError, match=r"lora.rank: 16 then, 8 now(.|\n)*must keep these"
    ) as refused:
        Trainer(
            smoke(
                run_name="new", lora__rank=8, train__beta=0.5, checkpoint__resume=origin, epochs=9
            )
        )
    assert "epochs" not in str(refused.value) and "beta" not in str(refused.value)


def test_the_adapter_beside_a_checkpoint_is_the_average_of_that_epoch(smoke: Smoke) -> None:
    config = smoke(epochs=1)
    Trainer(config).run()
    name = "pytorch_lora_weights.safetensors"
    last, kept = (
        load_file(p / name)
        for p in (folder(config) / "adapter", folder(config) / "checkpoints/epoch-1/adapter")
    )
    assert last.keys() == kept.keys() and all(torch.equal(last[key], kept[key]) for key in last)


def test_prompts_that_changed_behind_their_name_are_another_run(
    smoke: Smoke, tmp_path: Path
) -> None:
    """Groups and noise are keyed by a prompt's place in its file."""
    prompts = tmp_path / "train.jsonl"
    some = [
        json.dumps({"prompt": prompt, **metadata}) for prompt, metadata in captions.train()[:12]
    ]
    prompts.write_text("\n".join(some))
    Trainer(smoke(epochs=1, prompts__train=str(prompts))).run()
    prompts.write_text("\n".join(some[::-1]))
    with pytest.raises(ValueError, match=r"prompts.train \(content\): '\w+' then, '\w+' now"):
        Trainer(smoke(epochs=2, prompts__train=str(prompts)))
    prompts.write_text("\n".join(some))
    Trainer(smoke(epochs=2, prompts__train=str(prompts))).run()
