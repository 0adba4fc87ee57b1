"""The JPEG scorer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reward_models import build
from tests.reward_models import tiny


def test_the_score_is_the_size_of_the_file() -> None:
    images = np.concatenate([tiny.images(1), np.full((1, 40, 40, 3), 128, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, format="JPEG", quality=95)
    result = build("jpeg")(images, ["", ""], [{}, {}])
    assert result.score[0] == pytest.approx(-len(buffer.getvalue()) / 1000 / 500)
    assert result.extras["size_kb"] == pytest.approx(-500 * result.score)
    assert result.score[1] > result.score[0], "a plain image is smaller than noise"


def test_quality_and_scale_are_options() -> None:
    coarse, fine = (
        build("jpeg", quality=quality, scale=1.0)(tiny.images(), [""] * 5, [{}] * 5)
        for quality in (5, 95)
    )
    assert (coarse.score > fine.score).all()
    assert fine.score == pytest.approx(-fine.extras["size_kb"])
    with pytest.raises(ValueError, match=r"quality = 100 must lie in 1 \.\. 95"):
        build("jpeg", quality=100)
    with pytest.raises(ValueError, match="scale = 0 must be above 0"):
        build("jpeg", scale=0)
