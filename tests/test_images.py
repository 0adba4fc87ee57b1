"""Thumbnails, diversity and finest detail of pictures whose values are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tp_grpo.images import coarse, detail, diversity, thumbnails, to_uint8


def test_what_is_out_of_range_or_nan_is_a_pixel_all_the_same() -> None:
    values = (
        torch.tensor([-0.1, 1.1, float("nan"), float("inf")]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    )
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 255, 0, 255]


def test_images_are_quantised_by_rounding() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 0, 1, 255]
    assert to_uint8(values).dtype == np.uint8


def test_diversity_is_the_distance_of_two_images_of_a_prompt() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    small = coarse(np.stack([black, white, black, black]))
    assert diversity(small, torch.tensor([7, 7, 3, 3])) == pytest.approx((1 + 0) / 2)
    # Three images, two alike: of three pairs two differ by 1, so the mean square is 2/3.
    assert diversity(small[:3], torch.zeros(3)) == pytest.approx((2 / 3) ** 0.5)
    assert np.isnan(diversity(small, torch.arange(4)))


def test_diversity_does_not_take_noise_for_variety() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3)).astype(np.uint8)
    # Uniform noise: std 0.289; 4 x 4 means divide by 4, a difference of two multiplies by sqrt(2).
    assert diversity(coarse(noise), torch.zeros(24)) == pytest.approx(0.289 / 4 * 2**0.5, rel=0.02)


@pytest.mark.parametrize(
    "height, width, small",
    [(512, 512, (16, 16)), (48, 48, (16, 16)), (8, 8, (8, 8)), (40, 20, (13, 6)), (9, 7, (9, 7))],
)
def test_coarse_images_are_block_means_of_at_most_16_pixels(
    height: int, width: int, small: tuple[int, int]
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    shrunk = coarse(images)
    assert shrunk.shape == (2, *small, 3)
    factor = height // small[0]
    assert shrunk[1, 0, 1, 2].item() == pytest.approx(
        images[1, :factor, factor : 2 * factor, 2].mean() / 255
    )


def test_detail_is_that_of_a_chessboard_not_of_a_ramp() -> None:
    rows, columns = np.mgrid[:64, :64]
    board = np.stack([(rows + columns) % 2 * 255] * 3, -1).astype(np.uint8)
    ramp = np.stack([columns * 4] * 3, -1).astype(np.uint8)
    # The ramp climbs by 4 a column: 2 from the mean of two.
    assert detail(np.stack([board, ramp, 0 * ramp])).tolist() == pytest.approx(
        [0.5, 2 / 255, 0], abs=1e-6
    )
    assert detail(np.zeros((2, 9, 7, 3), np.uint8)).tolist() == [0, 0], "odd sides are cut"


def test_thumbnails_shrink_by_whole_factors() -> None:
    images = np.arange(2 * 200 * 100 * 3, dtype=np.int64).reshape(2, 200, 100, 3) % 256
    small = thumbnails(images.astype(np.uint8))
    assert small.shape == (2, 66, 33, 3)
    assert small[0, 0, 0, 0] == round(images[0, :3, :3, 0].mean())
    same = np.zeros((48, 48, 3), np.uint8)
    assert thumbnails(same).shape == (48, 48, 3)
