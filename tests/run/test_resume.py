"""`checkpoint.resume`: going back, branching off another run, and being started again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.faults.runs import SHORT
from tests.run.one_rank import Learner, open_folder, save
from tp_grpo.shapes import captions
from tp_grpo.store import checkpoint, files
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]


@pytest.fixture
def short(smoke: Smoke) -> Smoke:
    """A config of `tests.faults.runs.SHORT`; fields by dotted name."""

    def make(**fields: object) -> ConfigDict:
        config = smoke()
        changed = {name.replace("__", "."): value for name, value in fields.items()}
        config.update_from_flattened_dict({**SHORT, **changed})
        return config

    return make


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


def test_from_another_run_s_checkpoint_it_trains_the_same_and_repeated_it_resumes(
    short: Smoke,
) -> None:
    old = short(run_name="old", epochs=3, checkpoint__keep=3)
    Trainer(old).run()
    origin = str(folder(old) / "checkpoints" / "epoch-1")
    new = {"run_name": "new", "checkpoint__resume": origin}
    trainer = Trainer(short(**new, epochs=2))
    assert trainer.tracker.run_id != saved(old, 1).tracker, "another run has curves of its own"
    trainer.run()
    config = short(**new, epochs=3)
    assert same(saved(config, 2), saved(old, 2))
    assert logged(config, "train") == [2]
    assert logged(config, "eval") == [0, 2]
    trainer = Trainer(config)
    resumed = trainer.run_folder.origin
    assert resumed and resumed.epoch == 2, "what was done since is not done again"
    assert trainer.tracker.run_id == saved(config, 2).tracker
    trainer.run()
    assert same(saved(config, 3), saved(old, 3))
    assert logged(config, "train") == [2, 3]


def test_going_back_forgets_what_came_later_and_starts_new_curves(short: Smoke) -> None:
    config = short(epochs=3, checkpoint__keep=3)
    Trainer(config).run()
    first, last = saved(config, 1), saved(config, 3)
    assert first.tracker == last.tracker
    config.checkpoint.resume = str(folder(config) / "checkpoints" / "epoch-1")
    config.epochs = 2
    Trainer(config).run()
    assert not (folder(config) / "checkpoints" / "epoch-3").exists()
    assert logged(config, "train") == [1, 2]
    second = saved(config, 2)
    assert second.tracker != first.tracker, "trackers cannot be rewound: their steps only grow"
    config.update(epochs=3)
    config.checkpoint.resume = "auto"
    Trainer(config).run()
    assert same(saved(config, 3), last)
    assert saved(config, 3).tracker == second.tracker


def test_the_adapter_in_a_checkpoint_is_the_average_of_that_epoch(short: Smoke) -> None:
    config = short(epochs=1)
    Trainer(config).run()
    name = "pytorch_lora_weights.safetensors"
    last = load_file(folder(config) / "adapter" / name)
    kept = load_file(folder(config) / "checkpoints/epoch-1/adapter" / name)
    assert last.keys() == kept.keys()
    assert all(torch.equal(last[key], kept[key]) for key in last)


def test_prompts_that_changed_behind_their_name_are_another_run(
    short: Smoke, tmp_path: Path
) -> None:
    """Groups and noise are keyed by a prompt's place in its file."""
    prompts = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": text, **meta}) for text, meta in captions.train()[:12]]
    prompts.write_text("\n".join(lines))
    config = short(epochs=1, prompts__train=str(prompts))
    Trainer(config).run()
    prompts.write_text("\n".join(lines[::-1]))
    with pytest.raises(ValueError, match=r"prompts.train \(content\): '\w+' then, '\w+' now"):
        Trainer(config)
    prompts.write_text("\n".join(lines))
    resumed = Trainer(config).run_folder.origin
    assert resumed and resumed.epoch == 1


def test_a_folder_resumes_from_its_newest_checkpoint_with_its_tracker(smoke: Smoke) -> None:
    save(open_folder(smoke()), 1, 2, tracker="curve")
    again = open_folder(smoke())
    assert again.origin and (again.origin.epoch, again.origin.tracker) == (2, "curve")
    learner = Learner()
    assert again.restore(learner) == 2  # type: ignore[arg-type]
    assert learner.restored == 2
    assert again.runtime.lines == [f"resuming from epoch 2 of {again.folder}"]  # type: ignore[attr-defined]
    assert again.origin is None


def test_a_run_of_its_own_name_is_refused_where_resuming_is(smoke: Smoke) -> None:
    save(open_folder(smoke()), 1)
    with pytest.raises(ValueError, match=r"'never', but .* holds a run at epoch 1"):
        open_folder(smoke(checkpoint__resume="never"))


def test_its_own_newest_checkpoint_named_is_its_own_curve_and_an_earlier_one_is_not(
    smoke: Smoke,
) -> None:
    save(first := open_folder(smoke()), 1, 2, tracker="curve")
    for epoch, tracker in ((2, "curve"), (1, "")):
        path = str(first.checkpoints.path(epoch))
        origin = open_folder(smoke(checkpoint__resume=path)).origin
        assert origin and (origin.epoch, origin.tracker) == (epoch, tracker)


def test_fields_that_do_not_matter_may_change(smoke: Smoke) -> None:
    save(open_folder(smoke(epochs=1)), 1)
    fields = {
        "epochs": 2,
        "sample__batch_size": 2,
        "sample__max_rows": 3,
        "sample__store_on_cpu": True,
        "eval__batch_size": 3,
        "eval__every": 2,
        "train__max_skipped": 3,
        "checkpoint__keep": 5,
    }
    assert open_folder(smoke(**fields)).origin


@pytest.mark.parametrize(
    "resume, message",
    [
        ("no/such", r"resume = 'no/such' is no folder; it is auto, never, or a checkpoint such as"),
        ("tests", r"checkpoint tests: no state.json"),
    ],
)
def test_a_path_that_is_no_checkpoint_is_an_error(smoke: Smoke, resume: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(smoke(checkpoint__resume=resume))


def test_a_run_that_starts_with_another_s_weights_keeps_what_they_belong_to(smoke: Smoke) -> None:
    save(old := open_folder(smoke(run_name="old", epochs=1)), 1)
    fields = {"run_name": "new", "train__beta": 0.5, "epochs": 9}
    fields["checkpoint__resume"] = str(old.checkpoints.path(1))
    assert open_folder(smoke(**fields)).origin
    with pytest.raises(ValueError, match=r"lora.rank: 16 then, 8 now\n.*must keep") as refused:
        open_folder(smoke(**fields, lora__rank=8))
    assert "epochs" not in str(refused.value)
    assert "beta" not in str(refused.value)


@pytest.mark.parametrize("older", [False, True])
def test_the_same_checkpoint_named_from_another_folder_resumes(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, older: bool
) -> None:
    """Taken for another checkpoint, it would remove the epochs trained since."""
    save(base := open_folder(smoke(run_name="base")), 1)
    monkeypatch.chdir(tmp_path)
    given = "base/checkpoints/epoch-1"
    save(new := open_folder(smoke(run_name="new", checkpoint__resume=given)), 2, 3)
    if older:  # it kept the path as it was given
        new.settings["checkpoint"]["resume"] = f"../{tmp_path.name}/{given}"
        save(new, 4)
    monkeypatch.chdir("/")
    absolute = str(base.checkpoints.path(1))
    again = open_folder(smoke(run_name="new", checkpoint__resume=absolute)).origin
    assert again and again.epoch == (4 if older else 3)
    save(open_folder(smoke(run_name="other")), 1)
    other = str(tmp_path / "other/checkpoints/epoch-1")
    started = open_folder(smoke(run_name="new", checkpoint__resume=other)).origin
    assert started and started.epoch == 1, "another run's checkpoint begins another branch"


def test_a_branch_compares_no_evaluations_of_other_settings(short: Smoke, tmp_path: Path) -> None:
    base = short(run_name="base", epochs=1, eval__every=1)
    Trainer(base).run()
    shutil.copytree(folder(base), tmp_path / "copy")
    path = str(folder(base) / "checkpoints/epoch-1")
    fields = {"run_name": "copy", "epochs": 2, "seed": 7, "checkpoint__resume": path}
    known = captions.train()[:2]
    (tmp_path / "held_out.jsonl").write_text(
        "".join(json.dumps({"prompt": text, **meta}) + "\n" for text, meta in known)
    )
    copy = short(**fields, eval__steps=1, prompts__eval=str(tmp_path / "held_out.jsonl"))
    Trainer(copy).run()
    assert logged(copy, "eval") == [0, 2]
    for name in ("epoch-0", "epoch-2"):
        with safe_open(folder(copy) / f"evaluations/{name}.safetensors", "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["settings"])["steps"] == 1
        assert json.loads(metadata["prompts"]) == [text for text, _ in known]


def test_a_damaged_evaluation_is_refused_before_a_run_resumes(smoke: Smoke) -> None:
    save(first := open_folder(smoke()), 1)
    for kind in ("ladders", "evaluations"):
        path = first.folder / kind / "epoch-1.safetensors"
        path.parent.mkdir()
        save_file({"images": torch.zeros(1)}, path, {"prompts": "[]"})
        assert open_folder(smoke()).origin
        later = path.with_name("epoch-2.safetensors")
        later.write_bytes(b"half")
        assert open_folder(smoke()).origin, "what comes after the checkpoint is made anew"
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\); move it away"):
            open_folder(smoke())
        path.unlink()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "plan.txt", "report.html"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_a_run_begins(
    smoke: Smoke, name: str
) -> None:
    config = smoke()
    (folder(config) / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{name} is a folder where a file is written; move it"):
        open_folder(config)


def test_an_evaluation_damaged_during_a_run_costs_no_checkpoint(smoke: Smoke) -> None:
    run = open_folder(smoke())
    (run.folder / "evaluations").mkdir()
    for epoch in (0, 1):
        (run.folder / f"evaluations/epoch-{epoch}.safetensors").write_bytes(b"half")
    save(run, 1)
    assert run.checkpoints.epochs() == [1]
    assert "the policy's card has no scores: " in run.runtime.lines[-1]  # type: ignore[attr-defined]
    learner: Any = Learner()
    (run.folder / "metrics.jsonl").touch()
    (run.folder / "config.yaml").write_text("seed: 1")
    run.finish(learner)
    assert (run.folder / "adapter/weights").is_file()
    assert run.runtime.lines[-1].startswith("no report was written: ")  # type: ignore[attr-defined]
