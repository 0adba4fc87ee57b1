"""Figures that weigh tags and not images, such as GenEval's overall score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reward_models
from tp_grpo.data.prompts import PromptSet
from tp_grpo.evaluate.held_out import Evaluation
from tp_grpo.evaluate.score_table import mean_rows
from tp_grpo.method.stats import score_means
from tp_grpo.rewards.reward_set import RewardSet

NAN = float("nan")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# Seven prompts of one image each: the first two are of the first tag.
VALUES = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
TAG_OF = [0, 0, 1, 2, 3, 4, 5]
PROMPTS = [f"prompt {i}" for i in range(7)]
OVERALL = (0.5 + 1 + 1 + 0 + 1 + 1) / 6


def columns(
    values: list[float], kinds: tuple[str, ...] = ("tag", "strict")
) -> dict[str, torch.Tensor]:
    """What the scorer geneval says of the prompts: each tag's rows, NaN elsewhere."""
    found = {"geneval": torch.tensor(values)}
    for kind in kinds:
        for i, tag in enumerate(TAGS):
            own = [value if TAG_OF[row] == i else NAN for row, value in enumerate(values)]
            found[f"geneval/{kind}/{tag}"] = torch.tensor(own)
    return found


def test_geneval_declares_the_means_of_its_six_tags_in_process_and_remote() -> None:
    expected = {
        "geneval/overall": tuple(f"geneval/tag/{tag}" for tag in TAGS),
        "geneval/overall_strict": tuple(f"geneval/strict/{tag}" for tag in TAGS),
    }
    found = reward_models.macros(["jpeg", "geneval", "a name of the far end"])
    assert {name: sorted(parts) for name, parts in found.items()} == {
        n: sorted(p) for n, p in expected.items()
    }
    assert RewardSet({"geneval": {"remote": "http://127.0.0.1:9"}}).macros == found


def test_a_macro_mean_and_its_error_by_hand() -> None:
    values = torch.tensor([0.0, 1.0, NAN, NAN, NAN]), torch.tensor([NAN, NAN, 1.0, 0.5, 0.0])
    means = score_means(dict(zip("ab", values, strict=True)), list("pqrst"), {"m": "ab"})
    # The means are 1/2 each; their errors sqrt(1/2) / sqrt(2) = 1/2 and 1/2 / sqrt(3).
    assert means["m"] == pytest.approx((0.5, np.hypot(0.5, 0.5 / np.sqrt(3)) / 2, 5))


def test_an_evaluation_reports_geneval_s_overall_score() -> None:
    none = np.zeros((0, 4, 4, 3), np.uint8)
    summary = Evaluation(
        columns(VALUES), none, PROMPTS, reward_models.macros(["geneval"])
    ).summary()
    assert summary["geneval/overall"] == summary["geneval/overall_strict"] == pytest.approx(OVERALL)
    assert summary["geneval"] == pytest.approx(5 / 7), "the mean over images is another"


def test_five_tags_have_no_overall_score() -> None:
    values = [*VALUES[:6], NAN]
    none = np.zeros((0, 4, 4, 3), np.uint8)
    summary = Evaluation(
        columns(values), none, PROMPTS, reward_models.macros(["geneval"])
    ).summary()
    assert "geneval" in summary and not any("overall" in name for name in summary)


def test_the_table_has_a_row_of_it_for_all_prompts_and_none_by_tag() -> None:
    scores = columns(VALUES, kinds=("tag",))
    samples = {
        (i, 0): {name: column[i].item() for name, column in scores.items()} for i in range(7)
    }
    prompts = PromptSet(PROMPTS, [{"tag": TAGS[tag]} for tag in TAG_OF])
    rows = mean_rows(samples, prompts, reward_models.macros(["geneval"]))
    (row,) = [row for row in rows if "overall" in row["score"]]
    assert row["score"] == "geneval/overall" and row["tag"] is None and row["n"] == 7
    assert row["mean"] == pytest.approx(OVERALL)
