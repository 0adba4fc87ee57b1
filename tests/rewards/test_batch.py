"""Which images of a batch are equal, and which no call may separate."""

from __future__ import annotations

import numpy as np

from tp_grpo.rewards import batch
from tp_grpo.rewards.batch import Batch

IMAGES = np.zeros((5, 2, 2, 3), np.uint8)


def test_images_of_other_shape_are_not_equal() -> None:
    flat, tall = np.zeros((1, 4, 3), np.uint8), np.zeros((4, 1, 3), np.uint8)
    assert batch._key(flat, "", {}) != batch._key(tall, "", {})


def test_single_images_may_be_separated_and_equal_ones_are_one() -> None:
    single = Batch(IMAGES, list("aabab"), [{}] * 5)
    assert [unit.tolist() for unit in single.units] == [[0], [1]]
    assert single.distinct[0].tolist() == [0, 2]
    assert len(single.take(np.array([0, 2]))) == 3


def test_groups_stay_whole_and_keep_their_equal_images() -> None:
    whole = Batch(IMAGES, list("aabab"), [{}] * 5, np.array([7, 7, 2, 7, 2]))
    assert [unit.tolist() for unit in whole.units] == [[0, 1, 3], [2, 4]]
    assert whole.distinct[0].tolist() == whole.distinct[1].tolist() == [0, 1, 2, 3, 4]
    assert whole.take(np.array([2, 4]))[3].tolist() == [2, 2]
