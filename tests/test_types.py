"""cat, index and to: what belongs to a sample moves with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tp_grpo.types import Step, cat, index, repeat, to


@dataclass(frozen=True)
class Cond:
    tokens: Tensor
    pooled: Tensor


def make_cond(first: int, count: int) -> Cond:
    number = torch.arange(first, first + count)
    return Cond(number[:, None].repeat(1, 2), number.double() + torch.rand(count).double() / 2)


def equal(a: Cond, b: Cond) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_index_undoes_cat(dtype: torch.dtype) -> None:
    parts = [make_cond(0, 2), make_cond(2, 3)]
    joined = cat(parts)
    assert joined.tokens[:, 0].tolist() == [0, 1, 2, 3, 4]
    for part, rows in zip(parts, (torch.tensor([0, 1]), torch.tensor([2, 3, 4])), strict=True):
        chosen = rows if dtype == torch.int64 else torch.isin(torch.arange(5), rows)
        assert equal(index(joined, chosen), part)


def test_index_reorders_repeats_and_slices() -> None:
    cond = make_cond(0, 4)
    assert index(cond, torch.tensor([3, 1, 1])).tokens[:, 0].tolist() == [3, 1, 1]
    assert index(cond, slice(1, 3)).tokens[:, 0].tolist() == [1, 2]
    with pytest.raises(IndexError):
        index(cond, torch.tensor([4]))


def test_cat_refuses_no_batches_and_a_mixture() -> None:
    with pytest.raises(ValueError, match="at least one"):
        cat([])
    with pytest.raises(ValueError, match="mixture of types"):
        cat([make_cond(0, 1), Step(torch.zeros(1), torch.ones(1), torch.ones(1))])


def test_to_moves_every_tensor_and_keeps_the_class() -> None:
    moved = to(make_cond(0, 2), "meta")
    assert isinstance(moved, Cond)
    assert {moved.tokens.device.type, moved.pooled.device.type} == {"meta"}


@dataclass(frozen=True)
class Ragged:
    ragged: ClassVar = ("tokens",)
    host: ClassVar = ("lengths",)
    tokens: Tensor
    lengths: Tensor


def ragged(*lengths: int) -> Ragged:
    """A sample of each length, filled up to the longest."""
    tokens = torch.ones(len(lengths), max(lengths), 2)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return Ragged(tokens, torch.tensor(lengths))


def test_what_differs_in_length_is_filled_up_with_zeros() -> None:
    joined = cat([ragged(2), ragged(4, 1), ragged(3)])
    assert torch.equal(joined.tokens, ragged(2, 4, 1, 3).tokens)
    assert joined.lengths.tolist() == [2, 4, 1, 3]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        cat([Cond(torch.ones(1, 2), torch.ones(1)), Cond(torch.ones(1, 3), torch.ones(1))])


def test_what_belongs_to_the_host_stays_there() -> None:
    moved = to(ragged(2, 3), "meta")
    assert (moved.tokens.device.type, moved.lengths.device.type) == ("meta", "cpu")


def test_a_sample_is_repeated_without_a_copy() -> None:
    one = make_cond(3, 1)
    three = repeat(one, 3)
    assert three.tokens.tolist() == [[3, 3]] * 3
    assert three.tokens.untyped_storage().data_ptr() == one.tokens.untyped_storage().data_ptr()
