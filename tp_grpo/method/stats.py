"""Means of scores with their standard errors, over prompts: images of one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor


def summarise(columns: Mapping[str, Tensor], prompts: Sequence[Hashable]) -> dict[str, float]:
    """{name: mean, name_se: error} over prompts, as `mean_and_error`; a column without any value is left out."""
    found = {}
    for name, values in columns.items():
        if not values.isnan().all():
            found[name], found[f"{name}_se"] = mean_and_error(values, prompts)
    return found


def mean_and_error(values: Tensor, prompts: Sequence[Hashable]) -> tuple[float, float]:
    """Mean of values (n,) and its standard error over prompts: images of one prompt are not independent.

    NaN values are left out, and prompts that have no other; (nan, nan) when none is left, error nan for one prompt.
    """
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    had = ~values.isnan()
    groups = torch.tensor([row[prompt] for prompt in prompts])[had]
    totals = torch.zeros(len(row), dtype=torch.float64).index_add_(0, groups, values[had].double())
    counts = torch.bincount(groups, minlength=len(row))
    means = totals[counts > 0] / counts[counts > 0]
    return means.mean().item(), (means.std() / len(means) ** 0.5).item() if len(
        means
    ) > 1 else float("nan")


def macro_means(
    columns: Mapping[str, Tensor], prompts: list[str], macros: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """Of each macro mean whose columns (n,) all have a value: the mean of the columns' means, and its standard error.

    The columns' rows are disjoint, as the tags of prompts are, and so their errors independent.
    """
    found = {}
    for name, parts in macros.items():
        if all(part in columns and not columns[part].isnan().all() for part in parts):
            means, errors = zip(
                *(mean_and_error(columns[part], prompts) for part in parts), strict=True
            )
            found[name] = sum(means) / len(parts), math.hypot(*errors) / len(parts)
    return found
