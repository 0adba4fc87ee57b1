"""The lines of a resumable evaluation, whatever stops it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tp_grpo.evaluate.score_table import ScoreTable
from tp_grpo.rewards.reward_set import Rewards
from tp_grpo.store.compare import CONTENT
from tp_grpo.types import PromptBatch

SETTINGS = {"seed": 1, "model": {"path": "a", "height": 8}}
ALL = [(prompt, 2) for prompt in range(9)]
NAN = float("nan")


def batch(prompts: list[int]) -> PromptBatch:
    """The third member of each."""
    n = len(prompts)
    return PromptBatch([""] * n, [{}] * n, torch.tensor(prompts), torch.full((n,), 2))


def rewards(total: list[float], judge: list[float]) -> Rewards:
    values = torch.tensor(total)
    return Rewards(values, {"a": values, "judge": torch.tensor(judge)}, {"a/x": values / 2})


def test_what_is_written_is_read_by_every_rank(tmp_path: Path) -> None:
    first, second = ScoreTable(tmp_path, SETTINGS, 0), ScoreTable(tmp_path, SETTINGS, 1)
    first.append(batch([4]), rewards([0.5], [1.0]))
    second.append(batch([7]), rewards([0.25], [NAN]))
    scores = first.read(ALL)
    assert scores[4, 2] == {"total": 0.5, "a": 0.5, "judge": 1.0, "a/x": 0.25}
    assert math.isnan(scores[7, 2]["judge"]), "an extra judge without a score is no reason to retry"


def test_an_image_without_a_total_is_left_for_the_next_try(tmp_path: Path) -> None:
    table = ScoreTable(tmp_path, SETTINGS, 0)
    table.append(batch([1, 2]), rewards([NAN, 1.0], [1.0, 1.0]))
    assert list(table.read(ALL)) == [(2, 2)]


def test_a_line_that_a_kill_cut_short_is_lost_alone(tmp_path: Path) -> None:
    table = ScoreTable(tmp_path, SETTINGS, 0)
    table.append(batch([1, 2]), rewards([1.0, 2.0], [0.0, 0.0]))
    table.path.write_text(table.path.read_text()[:-20])
    assert list(table.read(ALL)) == [(1, 2)]
    again = ScoreTable(tmp_path, SETTINGS, 0)
    again.append(batch([3]), rewards([3.0], [0.0]))
    assert list(again.read(ALL)) == [(1, 2), (3, 2)]


def test_other_settings_are_named_field_by_field(tmp_path: Path) -> None:
    ScoreTable(tmp_path, SETTINGS, 0)
    ScoreTable(tmp_path, SETTINGS, 1)
    other = {"seed": 1, "model": {"path": "b", "height": 8}}
    message = r"holds other scores:\n  model.path: 'a' then, 'b' now\nGive another --out"
    with pytest.raises(ValueError, match=message):
        ScoreTable(tmp_path, other, 0)


def test_the_same_content_under_another_path_and_another_server_are_no_other_settings(
    tmp_path: Path,
) -> None:
    def settings(path: str, content: str, **judge: object) -> dict[str, object]:
        scorers = {"judge": {"weight": 1.0, **judge}}
        return {"model": {"path": path}, f"model.path{CONTENT}": content, "scorers": scorers}

    ScoreTable(tmp_path, settings("x", "abc", remote="http://a:1", patience=5), 0)
    moved = settings("./x/", "abc", remote=["http://a:2", "http://b:2"], patience=60)
    ScoreTable(tmp_path, moved, 0)
    with pytest.raises(ValueError, match=r"model\.path \(content\): 'abc' then, 'def' now"):
        ScoreTable(tmp_path, settings("x", "def"), 0)
    with pytest.raises(ValueError, match=r"scorers\.judge\.weight: 1.0 then, 0.5 now"):
        ScoreTable(tmp_path, settings("x", "abc", weight=0.5), 0)


def test_a_table_from_before_contents_were_kept_is_read_unless_there_is_an_adapter(
    tmp_path: Path,
) -> None:
    ScoreTable(tmp_path, {"model": {"path": "x"}}, 0)
    now = {"model": {"path": "x", "adapter": ""}, f"model.path{CONTENT}": "abc"}
    ScoreTable(tmp_path, now, 0)
    now["model"] = {"path": "x", "adapter": "lora.safetensors"}
    with pytest.raises(ValueError, match=r"model\.adapter: '' then, 'lora.safetensors' now"):
        ScoreTable(tmp_path, now, 0)


def test_lines_that_are_no_scores_are_passed_over_and_a_damaged_table_is_named(
    tmp_path: Path,
) -> None:
    table = ScoreTable(tmp_path, SETTINGS, 0)
    table.append(batch([1]), rewards([1.0], [0.0]))
    with table.path.open("a") as file:
        file.write('7\n{"prompt": 2}\n')
        rows = [(prompt, {"total": 1}) for prompt in ("a cat", 1.0, True, None, [2])]
        odd = (3, {}, [], {"total": "1"}, {"total": None}, {"total": 1, "a": [1]})
        for prompt, scores in (*rows, *((3, scores) for scores in odd)):
            file.write(json.dumps({"prompt": prompt, "member": 2, "scores": scores}) + "\n")
        file.write('{"prompt": 99, "member": 2, "scores": {"total": 1}}\n')  # it is not asked for
    table.path.with_name("scores-old.jsonl").write_text(
        '{"prompt": 4, "member": 2, "scores": {"total": 55}}\n'
    )
    assert list(table.read(ALL)) == [(1, 2)]
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json cannot be read"):
        ScoreTable(tmp_path, SETTINGS, 0)
