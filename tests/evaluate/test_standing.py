"""scripts/evaluate.py: a table of scores that can be stopped and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from tests.forked import printed, script
from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate import standing
from tp_grpo.settings import Settings
from tp_grpo.shapes import captions
from tp_grpo.store.compare import changed_scores


def rows(folder: Path) -> dict[tuple[str, str | None], dict[str, Any]]:
    table = json.loads((folder / "table.json").read_text())
    return {(row["score"], row["tag"]): row for row in table}


def scores(folder: Path) -> dict[tuple[int, int], float]:
    lines = (folder / "scores-0.jsonl").read_text().splitlines()
    complete = [json.loads(line) for line in lines if line.endswith("}}")]
    return {(row["prompt"], row["member"]): row["scores"]["total"] for row in complete}


@pytest.fixture(scope="module")
def options(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Six prompts of two tags. A scorer without thresholds: two kernels may round differently."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    tagged = zip(captions.held_out()[:6], "abab" + "aa", strict=True)
    lines = [{"prompt": text, **data, "tag": tag} for (text, data), tag in tagged]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    checkpoint = f"--checkpoint={trained}/checkpoints/epoch-2"
    scorer = "--rewards=tests.scorers:ByTag"
    return (checkpoint, scorer, f"--prompts={prompts}", "--config.eval.prompts=0")


@pytest.fixture(scope="module")
def whole(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation in one batch."""
    folder = tmp_path_factory.mktemp("whole")
    text = printed("evaluate", *options, f"--out={folder}", "--config.eval.batch_size=6")
    assert "| total | all |" in text
    assert "| total | b |" in text
    return folder


def test_the_table_has_rows_for_all_prompts_and_by_tag(whole: Path) -> None:
    table, name = rows(whole), "tests.scorers:ByTag"
    assert {tag: table["total", tag]["n"] for tag in (None, "a", "b")} == {None: 6, "a": 4, "b": 2}
    halves = [table[name, tag]["mean"] for tag in "ab"]
    assert table[f"{name}/overall", None]["mean"] == pytest.approx(sum(halves) / 2)
    assert table[name, None]["mean"] != pytest.approx(sum(halves) / 2), "it averages images"


def test_it_resumes_and_the_batch_size_changes_no_score(
    options: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    file = tmp_path / "cut" / "scores-0.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    out = f"--out={tmp_path / 'cut'}"
    text = printed("evaluate", *options, out, "--config.eval.batch_size=1")
    assert "3 of 6 images are scored already" in text
    assert scores(tmp_path / "cut") == pytest.approx(scores(whole), abs=1e-3)
    assert rows(tmp_path / "cut").keys() == rows(whole).keys()
    assert all(row["n"] == rows(whole)[key]["n"] for key, row in rows(tmp_path / "cut").items())


def test_scores_by_other_settings_are_refused(options: tuple[str, ...], whole: Path) -> None:
    done = script("evaluate", *options, f"--out={whole}", "--config.seed=5")
    assert done.returncode == 2
    assert "seed: 42 then, 5 now" in done.stderr


def test_scores_depend_on_what_the_prompts_and_the_models_adapter_hold(
    smoke: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    def known(count: int, **fields: object) -> dict[str, object]:
        config = Settings.read(smoke(**fields))
        return standing._settings(config, {}, None, PromptSet(["a cat"], [{"count": count}]))

    adapter = tmp_path / "lora.safetensors"
    adapter.write_bytes(b"an adapter")
    plain, adapted = known(1), known(1, model__adapter=str(adapter))
    adapter.write_bytes(b"another")
    trained_on = known(1, model__adapter=str(adapter))
    assert changed_scores(plain, known(1)) == []
    for then, now in ((plain, known(2)), (plain, adapted), (adapted, trained_on)):
        assert changed_scores(then, now)


def test_a_run_s_evaluations_depend_on_what_changes_their_images_or_scores(
    smoke: Callable[..., ConfigDict],
) -> None:
    def known(digest: str = "abc", **fields: object) -> dict[str, object]:
        return standing.settings(
            Settings.read(smoke(**fields)), {"prompts.eval (content)": digest, "lora.init": "a"}
        )

    plain = known()
    others = (
        *(known(eval__steps=1), known(eval__members=2), known(eval__prompts=1), known(seed=9)),
        *(known(sample__guidance_scale=2.0), known(rewards__scorers={"jpeg": 1.0}), known("def")),
    )
    for other in others:
        assert changed_scores(json.loads(json.dumps(plain)), other)
    same = known(eval__batch_size=1, train__learning_rate=1.0, prompts__eval="elsewhere.txt")
    assert changed_scores(json.loads(json.dumps(plain)), same) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--checkpoint=no/such/run",), "no trained policy"),
        (("--rewards=shaps",), "did you mean 'shapes'"),
        (("--config.eval.members=0",), "eval.members = 0 must be at least 1"),
        (("--config.model.decode_batch_size=0",), "model.decode_batch_size = 0 must be at least 1"),
        (("--prompts=missing.txt",), "--prompts = 'missing.txt': no such file"),
    ],
)
def test_evaluate_refuses_with_a_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = script("evaluate", *arguments, f"--out={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_comparison_is_resumed_by_whole_prompts(options: tuple[str, ...], tmp_path: Path) -> None:
    group = ("--rewards=tests.scorers:Contrast", "--config.eval.members=2")
    arguments = (options[0], *options[2:], *group)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    printed("evaluate", *arguments, f"--out={whole}", "--config.eval.batch_size=12")
    shutil.copytree(whole, cut)
    file = cut / "scores-0.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 12
    file.write_text("\n".join(lines[:3]) + "\n")  # both of a prompt, and one of another
    text = printed("evaluate", *arguments, f"--out={cut}", "--config.eval.batch_size=3")
    assert "3 of 12 images are scored already" in text
    assert len(file.read_text().splitlines()) == 3 + 10, "two images of the other five prompts"
    assert scores(cut) == pytest.approx(scores(whole), abs=1e-3)
    assert max(map(abs, scores(cut).values())) > 1e-3


def test_a_comparison_of_one_image_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    group = ("--rewards=tests.scorers:Contrast", f"--out={tmp_path}")
    done = script("evaluate", options[0], *options[2:], *group)
    assert done.returncode == 2, done.stderr
    assert "eval.members = 1: rewards.scorers.tests.scorers:Contrast compares" in done.stderr
