"""Means of scores over prompts with their standard errors, and the group mean they share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """Mean over prompts, its standard error, and the number of values."""

    mean: float
    error: float
    n: int


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """Means (G, ...) of values (N, ...) by group (N,) in [0, G), without NaN; NaN if none is left.

    Accumulates in the dtype of values, row after row.
    """
    valid = ~values.isnan()
    zeros = values.new_zeros(int(group.max()) + 1, *values.shape[1:])
    total = zeros.index_add(0, group, values.masked_fill(~valid, 0))
    return total / zeros.index_add(0, group, valid.to(values.dtype))


def mean_and_error(values: Tensor, prompts: Sequence[Hashable]) -> tuple[float, float]:
    """Mean over prompts of values (n,) and its standard error: a prompt's images are dependent.

    NaN values are left out, and so are prompts without another; (nan, nan) when none is left, error
    nan for one prompt.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    means = group_means(values.double(), torch.tensor([number[prompt] for prompt in prompts]))
    means = means[~means.isnan()]
    error = (means.std() / len(means) ** 0.5).item() if len(means) > 1 else math.nan
    return means.mean().item(), error


def score_means(
    columns: Mapping[str, Tensor],
    prompts: Sequence[Hashable],
    macros: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, Mean]:
    """`mean_and_error` of each column (n,) that has a value, then the macro means.

    macros: name -> the columns whose means it averages, left out unless all of them have a value.
    Their rows are disjoint, as the tags of prompts are, so that their errors are independent.
    """
    means = {
        name: Mean(*mean_and_error(values, prompts), int((~values.isnan()).sum()))
        for name, values in columns.items()
        if not values.isnan().all()
    }
    for name, parts in macros.items():
        if all(part in means for part in parts):
            mean, error, n = zip(*(means[part] for part in parts), strict=True)
            means[name] = Mean(sum(mean) / len(parts), math.hypot(*error) / len(parts), sum(n))
    return means


def summarise(
    columns: Mapping[str, Tensor],
    prompts: Sequence[Hashable],
    macros: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, float]:
    """`score_means` as {name: mean, name_se: error}."""
    summary: dict[str, float] = {}
    for name, (mean, error, _) in score_means(columns, prompts, macros).items():
        summary |= {name: mean, f"{name}_se": error}
    return summary
