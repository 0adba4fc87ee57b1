"""GenEval's detector, colours and scorer: hand-made pixels, then tiny random models from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reward_models import build
from reward_models.geneval import GenEval
from reward_models.geneval_detector import ColorClassifier, Mask2FormerDetector, crop
from reward_models.geneval_logic import CLASSES, COLORS, TAGS, Detection
from tests.reward_models import tiny

CAT, DOG = CLASSES.index("cat"), CLASSES.index("dog")
RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def test_a_crop_shows_the_object_on_grey() -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    image[2:4, 3:6] = (255, 0, 0)
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:5] = True
    shown = np.array(crop(image, Detection(CAT, 1.0, (2, 2, 6, 4), mask)))
    assert shown.shape == (2, 4, 3)
    assert (shown[:, 1:3] == (255, 0, 0)).all()
    assert (shown[:, [0, 3]] == 0x99).all()
    assert (
        np.array(crop(image, Detection(CAT, 1.0, (2, 2, 6, 4)))).tolist()
        == image[2:4, 2:6].tolist()
    )


class PixelClip:
    """Embeds a crop as its mean colour, and a prompt as the colour that it names."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def image(self, crops: list[Any]) -> torch.Tensor:
        return torch.tensor(np.stack([np.array(image).mean((0, 1)) for image in crops]))

    def text(self, prompts: list[str]) -> torch.Tensor:
        self.read += prompts
        vectors = [
            next((RGB[name] for name in RGB if name in prompt), (0, 0, 0)) for prompt in prompts
        ]
        return torch.tensor(vectors, dtype=torch.float64)


def test_a_colour_is_the_nearest_of_ten_each_the_mean_of_three_templates() -> None:
    clip = PixelClip()
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, :, :4], images[0, :, 4:], images[1] = RGB["red"], RGB["blue"], RGB["green"]
    left, right, whole = (
        Detection(CAT, 1, (0, 0, 4, 8)),
        Detection(DOG, 1, (4, 0, 8, 8)),
        Detection(CAT, 1, (0, 0, 8, 8)),
    )
    classify = ColorClassifier(clip)  # type: ignore[arg-type]
    assert classify([images[0], images[0], images[1]], [left, right, whole]) == [
        "red",
        "blue",
        "green",
    ]
    assert len(clip.read) == 60, "ten colours x three templates, once a class"
    assert clip.read[:3] == [
        "a photo of a red cat",
        "a photo of a red-colored cat",
        "a photo of a red object",
    ]
    assert clip.read[-1] == "a photo of a white object"
    assert "a photo of a pink dog" in clip.read
    assert classify([], []) == []


class Seen:
    """A detector that returns the objects numbered by the first pixel of each image."""

    def __init__(self, *objects: Sequence[Detection]) -> None:
        self.objects = objects

    def __call__(self, images: np.ndarray) -> list[list[Detection]]:
        return [list(self.objects[image[0, 0, 0]]) for image in images]


def read_pixel(images: Sequence[np.ndarray], objects: Sequence[Detection]) -> list[str]:
    """The colour at an object's top left corner."""
    corners = [
        tuple(image[int(d.box[1]), int(d.box[0])]) for image, d in zip(images, objects, strict=True)
    ]
    return [
        next((name for name, rgb in RGB.items() if rgb == corner), "black") for corner in corners
    ]


def world() -> tuple[GenEval, np.ndarray, list[dict[str, Any]]]:
    cat, dog = Detection(CAT, 0.8, (40, 40, 60, 60)), Detection(DOG, 0.95, (0, 40, 20, 60))
    sure = [Detection(CAT, 0.95, (40, 40, 60, 60))] * 2
    images = np.zeros((7, 64, 64, 3), np.uint8)
    images[:, 0, 0, 0] = (0, 1, 1, 2, 1, 1, 3)
    images[4, 40, 40], images[5, 40, 40], images[5, 40, 0] = RGB["red"], RGB["blue"], RGB["green"]
    include = [
        ("single_object", [{"class": "cat", "count": 1}]),
        ("two_object", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]),
        (
            "position",
            [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}],
        ),
        ("counting", [{"class": "cat", "count": 2}]),
        ("colors", [{"class": "cat", "count": 1, "color": "red"}]),
        (
            "color_attr",
            [
                {"class": "cat", "count": 1, "color": "blue"},
                {"class": "dog", "count": 1, "color": "red"},
            ],
        ),
        ("counting", [{"class": "cat", "count": 1}]),
    ]
    scorer = GenEval(detector=Seen([cat], [cat, dog], sure, [cat]), colors=read_pixel)
    return scorer, images, [{"tag": tag, "include": clauses} for tag, clauses in include]


def test_the_scorer_reports_each_verdict_and_by_tag() -> None:
    scorer, images, metadata = world()
    result = scorer(images, ["p"] * 7, metadata)
    # The cat of the last image has a score of 0.8, below the threshold for counting.
    assert result.score == pytest.approx([1, 1, 2 / 3, 1, 1, 0.75, 0])
    assert (
        result.extras["strict"].tolist()
        == result.extras["nonstrict"].tolist()
        == [1, 1, 0, 1, 1, 0, 0]
    )
    assert set(result.extras) == {"strict", "nonstrict"} | {
        f"{kind}/{tag}" for kind in ("tag", "strict") for tag in TAGS
    }
    np.testing.assert_array_equal(
        result.extras["tag/counting"], [np.nan] * 3 + [1] + [np.nan] * 2 + [0]
    )
    assert all(
        np.nansum(result.extras[f"tag/{tag}"]) == (tag in TAGS[:4])
        for tag in TAGS
        if tag != "position"
    )
    assert all(
        column.dtype == np.float32 and column.shape == (7,) for column in result.extras.values()
    )


def test_the_scorer_permutes_with_its_batch() -> None:
    scorer, images, metadata = world()
    order = np.array([5, 2, 0, 6, 1, 4, 3])
    before, after = (
        scorer(images, ["p"] * 7, metadata),
        scorer(images[order], ["p"] * 7, [metadata[i] for i in order]),
    )
    np.testing.assert_array_equal(after.score, before.score[order])
    for name, column in after.extras.items():
        np.testing.assert_array_equal(column, before.extras[name][order])


def test_one_object_seen_in_two_images_has_a_colour_in_each() -> None:
    cat = Detection(CAT, 0.8, (4, 4, 8, 8))
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[0, 4, 4], images[1, 4, 4] = RGB["red"], RGB["blue"]
    task = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    scorer = GenEval(detector=Seen([cat]), colors=read_pixel)
    assert scorer(images, ["p", "p"], [task, task]).extras["strict"].tolist() == [1, 0]


def test_reference_scoring_and_bad_options() -> None:
    five = Seen([Detection(CAT, 0.8, (0, 0, 1, 1))] * 5)
    task = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert GenEval("reference", detector=five, colors=read_pixel)(images, ["p"], [task]).score == -3
    assert GenEval("fixed", detector=five, colors=read_pixel)(images, ["p"], [task]).score == 0
    with pytest.raises(ValueError, match="scoring = 'strict' is not one of fixed, reference"):
        build("geneval", scoring="strict")


def test_bad_metadata_is_refused_before_any_image() -> None:
    scorer, _, metadata = world()
    scorer.check(["p"] * 7, metadata)
    with pytest.raises(ValueError, match="the metadata of the prompt 'a cat': tag is missing"):
        scorer.check(["p", "a cat"], [metadata[0], {}])
    with pytest.raises(ValueError, match="the metadata of the prompt 'a cat': tag is missing"):
        scorer(np.zeros((1, 8, 8, 3), np.uint8), ["a cat"], [{}])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("geneval")
    return {
        "path": str(tiny.save_detector(folder / "detector")),
        "color_path": str(tiny.save_open_clip(folder / "open_clip_model.pt")),
        "color_model": tiny.OPEN_CLIP,
        "device": "cpu",
        "side": 64,
    }


def test_the_detector_from_disk_finds_boxes_masks_and_labels(weights: dict[str, Any]) -> None:
    images = tiny.images(3, side=48)
    shown = Mask2FormerDetector(weights["path"], side=64)(images)
    assert len(shown) == 3
    assert sum(map(len, shown)) > 0
    for detection in (d for image in shown for d in image):
        assert 0 <= detection.label < 80
        assert 0.3 < detection.score < 1
        assert detection.mask is not None
        assert detection.mask.shape == (48, 48)
        assert detection.mask.dtype == bool
        rows, columns = detection.mask.nonzero()
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert detection.box == corners


@pytest.mark.parametrize(
    "side, image, padded, shown",
    [
        (800, (512, 512), (800, 800), (800, 800)),
        (800, (512, 768), (800, 1216), (800, 1200)),
        (800, (256, 768), (448, 1344), (444, 1333)),  # the longer side would be 2400: 1333 at most
        (64, (48, 48), (64, 64), (64, 64)),
    ],
)
def test_the_detector_gets_the_benchmarks_pixels(
    weights: dict[str, Any],
    side: int,
    image: tuple[int, int],
    padded: tuple[int, int],
    shown: tuple[int, int],
) -> None:
    detector = Mask2FormerDetector(weights["path"], device="cpu", side=side)
    seen: list[torch.Tensor] = []

    class Stop(Exception):
        pass

    def record(pixel_values: torch.Tensor) -> None:
        seen.append(pixel_values)
        raise Stop

    detector.model.forward = record
    with pytest.raises(Stop):
        detector(np.full((1, *image, 3), 255, np.uint8))
    assert seen[0].shape[2:] == padded
    white = seen[0][0, 0] > 1
    assert white[: shown[0], : shown[1]].all(), "padded, not stretched"
    assert white.sum() == shown[0] * shown[1], "padded, not stretched"


def test_the_detectors_side_is_checked(weights: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="geneval: side = 16 must be a whole number of at least 32"
    ):
        build("geneval", **(weights | {"side": 16}))


def test_the_detector_sees_the_same_in_any_chunk_and_order(weights: dict[str, Any]) -> None:
    images, order = tiny.images(5, side=48), [3, 0, 4, 1, 2]
    whole, parts = (
        Mask2FormerDetector(weights["path"], batch_size=size, side=64) for size in (8, 2)
    )
    for one, other in zip([whole(images)[i] for i in order], parts(images[order]), strict=True):
        assert [(d.label, d.box) for d in one] == [(d.label, d.box) for d in other]
        assert [d.score for d in one] == pytest.approx([d.score for d in other], abs=1e-5)


def test_the_colours_from_disk_are_some_of_the_ten(weights: dict[str, Any]) -> None:
    scorer = build("geneval", **weights)
    boxes = [Detection(CAT, 1.0, (0, 0, 20 + i, 30)) for i in range(5)]
    named = scorer.colors(list(tiny.images()), boxes)
    assert set(named) <= set(COLORS)
    assert len(named) == 5
    assert scorer.colors(list(tiny.images()[::-1]), boxes[::-1]) == named[::-1]


def test_the_scorer_from_disk_scores_what_its_models_see(weights: dict[str, Any]) -> None:
    images = tiny.images(3, side=48)
    scorer = build("geneval", **weights)
    shown = scorer.detector(images)
    first = next(i for i, image in enumerate(shown) if image)
    label = shown[first][0].label
    count = sum(d.label == label for d in shown[first])
    surest = max((d for d in shown[first] if d.label == label), key=lambda d: d.score)
    color = scorer.colors([images[first]], [surest])[0]
    present = {"tag": "two_object", "include": [{"class": CLASSES[label], "count": count}]}
    colored = {"tag": "colors", "include": [{"class": CLASSES[label], "count": 1, "color": color}]}
    absent = next(i for i in range(80) if all(d.label != i for d in shown[first]))
    missing = {"tag": "single_object", "include": [{"class": CLASSES[absent], "count": 1}]}
    result = scorer(
        images[[first] * 3], ["p"] * 3, json.loads(json.dumps([present, missing, colored]))
    )
    assert result.extras["nonstrict"].tolist() == [1, 0, 1]
    assert result.score[:2].tolist() == [1, 0]


def test_the_scorers_models_move_together(weights: dict[str, Any]) -> None:
    scorer = build("geneval", **weights).to("meta")
    for model in (scorer.detector.model, scorer.colors.clip.model):
        assert next(model.parameters()).device.type == "meta"


def test_a_detector_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = str(tiny.save_detector(tmp_path / "ade", num_labels=150))
    with pytest.raises(ValueError, match="the detector knows 150 classes, not COCO's 80"):
        Mask2FormerDetector(folder)
