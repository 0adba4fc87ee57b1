"""Means without NaN: over groups, and over prompts with their standard errors."""

from __future__ import annotations

import math

import pytest
import torch

from tp_grpo.method.stats import group_means, mean_and_error, score_means, summarise

NAN = float("nan")


def test_group_means_leave_nan_out_column_by_column() -> None:
    values = torch.tensor([[1.0, 2.0], [NAN, 4.0], [5.0, NAN], [7.0, NAN]], dtype=torch.float64)
    means = group_means(values, torch.tensor([1, 1, 0, 0]))
    assert means[1].tolist() == [1, 3]
    assert means[0, 0] == 6
    assert means[0, 1].isnan()


def test_a_group_without_rows_has_no_mean() -> None:
    assert group_means(torch.ones(2), torch.tensor([0, 2])).isnan().tolist() == [False, True, False]


def test_errors_are_over_prompts_not_images() -> None:
    values = torch.tensor([0.0, 1.0, 0.2, 0.6, float("nan"), 5.0])
    mean, error = mean_and_error(values[:5], ["a", "b", "a", "b", "c"])
    assert mean == pytest.approx(0.45)
    assert error == pytest.approx((0.8 - 0.1) / 2)  # means 0.1 and 0.8, c has none
    repeated = mean_and_error(values[:4].repeat(10), ["a", "b", "a", "b"] * 10)
    assert repeated == pytest.approx((mean, error)), "the same images again add nothing"


def test_one_prompt_has_no_error_and_no_value_no_mean() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 3.0]), ["a", "a"])
    assert mean == 2
    assert math.isnan(error)
    assert all(map(math.isnan, mean_and_error(torch.tensor([NAN]), ["a"])))


def test_a_column_without_values_is_left_out_and_n_counts_values() -> None:
    columns = {"x": torch.tensor([1.0, NAN, 3.0]), "none": torch.tensor([NAN, NAN, NAN])}
    means = score_means(columns, ["a", "b", "c"])
    assert list(means) == ["x"]
    assert means["x"] == pytest.approx((2, 1, 2))
    assert summarise(columns, ["a", "b", "c"]) == pytest.approx({"x": 2, "x_se": 1})
