"""From Mask2Former's logits to detections, as mmdet derives them, on hand-made logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_models.geneval_detector import Frame, detections
from reward_models.geneval_logic import CLASSES

CAT, DOG = CLASSES.index("cat"), CLASSES.index("dog")


def logits(*rows: dict[int, float], classes: int = 80) -> torch.Tensor:
    """(Q, C + 1) whose softmax is these probabilities; the null class gets the rest."""
    probability = torch.full((len(rows), classes + 1), 1e-12)
    for row, chances in zip(probability, rows, strict=True):
        for label, value in chances.items():
            row[label] = value
        row[-1] = 1 - sum(chances.values())
    return probability.log()


def test_the_score_is_class_probability_times_mean_sigmoid_inside_the_mask() -> None:
    masks = torch.full((2, 6, 8), -5.0)
    masks[0, 1:3, 2:6] = 2.0
    masks[0, 1, 2] = 1.0
    masks[1, 5, 7] = 9.0
    shown = detections(logits({CAT: 0.8}, {DOG: 0.6, CAT: 0.2}), masks, (6, 8))
    assert [d.label for d in shown] == [CAT, DOG]
    expected = 0.8 * (7 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-1))) / 8
    assert shown[0].score == pytest.approx(expected, abs=1e-6)
    assert shown[1].score == pytest.approx(0.6, abs=1e-4)
    assert shown[0].box == (2, 1, 6, 3), "x1 and y1 lie beyond the last pixel"
    assert shown[1].box == (7, 5, 8, 6), "x1 and y1 lie beyond the last pixel"
    assert shown[0].mask is not None
    assert shown[0].mask.sum() == 8


def test_detections_that_the_mask_pulls_below_the_threshold_are_dropped() -> None:
    weak = torch.full((1, 4, 4), 0.1)  # sigmoid 0.525
    assert detections(logits({CAT: 0.5}), weak, (4, 4)) == [], "0.5 x 0.525 < 0.3"
    assert detections(logits({CAT: 0.6}), weak, (4, 4))[0].score == pytest.approx(
        0.6 / (1 + np.exp(-0.1)), abs=1e-5
    )
    assert detections(logits({CAT: 0.9}), torch.full((1, 4, 4), -1.0), (4, 4)) == [], (
        "an empty mask"
    )
    assert detections(logits({CAT: 0.2}), weak, (4, 4)) == []


def test_one_query_may_be_two_objects_and_the_null_class_is_no_object() -> None:
    masks = torch.full((2, 4, 4), 9.0)
    shown = detections(logits({CAT: 0.45, DOG: 0.4}, {}), masks, (4, 4))
    assert [(d.label, round(d.score, 3)) for d in shown] == [(CAT, 0.45), (DOG, 0.4)]


def test_mask_logits_not_masks_are_resized_to_the_image() -> None:
    shown = detections(logits({CAT: 1 - 1e-6}), torch.tensor([[[1.0, -3.0]]]), (1, 8))
    # In units of the small mask, pixel centres lie at (i + 0.5) / 4 - 0.5: logits 1, 1, 0.5, -0.5.
    assert shown[0].mask is not None
    assert shown[0].mask[0].tolist() == [True, True, True] + [False] * 5
    sigmoid = [1 / (1 + np.exp(-x)) for x in (1.0, 1.0, 0.5)]
    assert shown[0].score == pytest.approx(np.mean(sigmoid), abs=1e-5)


def test_a_mask_covers_the_image_without_the_padding() -> None:
    frame = Frame(padded=(2, 8), shown=(2, 6))
    shown = detections(
        logits({CAT: 1 - 1e-6}), torch.tensor([[[-9.0, -9.0, 9.0, 9.0]]]), (2, 6), frame
    )
    assert shown[0].mask is not None
    assert shown[0].mask[0].tolist() == [False] * 4 + [True] * 2
    beyond = torch.tensor([[[-9.0, -9.0, -9.0, 9.0]]])
    assert detections(logits({CAT: 1 - 1e-6}), beyond, (2, 6), frame) == [], (
        "the padding holds no object"
    )


def test_the_100_best_pairs_of_query_and_class_are_kept() -> None:
    rows = [{CAT: 0.49 - 0.001 * i, DOG: 0.45 - 0.001 * i} for i in range(60)]
    shown = detections(logits(*rows), torch.full((60, 2, 2), 20.0), (2, 2))
    chances = sorted((p for row in rows for p in row.values()), reverse=True)
    assert len(shown) == 100
    assert sorted((d.score for d in shown), reverse=True) == pytest.approx(chances[:100], abs=1e-4)
