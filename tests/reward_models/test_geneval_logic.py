"""GenEval's rules on hand-made detections: every tag, every quirk, both scorings."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models.geneval_logic import (
    CLASSES,
    COLORS,
    TAGS,
    Detection,
    grade,
    judge,
    nonstrict,
    parse,
    relations,
    select,
    to_color,
)

Box = tuple[float, float, float, float]
LEFT, RIGHT, TOP, MIDDLE = (0, 40, 20, 60), (80, 40, 100, 60), (40, 0, 60, 20), (40, 40, 60, 60)


def thing(name: str, box: Box = MIDDLE, score: float = 0.95, color: str = "") -> Detection:
    return Detection(CLASSES.index(name), score, box, color=color)


def asked(tag: str, *include: dict[str, Any], exclude: list | None = None) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "exclude": exclude or [], "prompt": "p"}


def want(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def verdict(
    metadata: dict[str, Any], *seen: Detection, scoring: str = "fixed"
) -> tuple[float, float, float]:
    """(graded, strict, nonstrict)"""
    task = parse(metadata, "p")
    result = judge(task, select(seen, task.threshold), scoring)
    return result.graded, result.strict, result.nonstrict


def both(metadata: dict[str, Any], *seen: Detection) -> tuple[float, float]:
    """graded, with fixed and with reference scoring."""
    return verdict(metadata, *seen)[0], verdict(metadata, *seen, scoring="reference")[0]


CAT = asked("single_object", want("cat"))
CATS_AND_DOG = asked("two_object", want("cat"), want("dog"))
FOUR_CATS = asked("counting", want("cat", 4), exclude=[want("cat", 5)])
RED_CAT = asked("colors", want("cat", color="red"))
RED_CAT_BLUE_DOG = asked("color_attr", want("cat", color="red"), want("dog", color="blue"))
DOG_LEFT_OF_CAT = asked("position", want("cat"), want("dog", position=["left of", 0]))


def test_the_classes_are_cocos_80_in_its_order() -> None:
    assert len(set(CLASSES)) == 80
    named = {
        0: "person",
        11: "stop sign",
        16: "dog",
        63: "laptop",
        64: "computer mouse",
        65: "tv remote",
    }
    named |= {66: "computer keyboard", 67: "cell phone", 78: "hair drier", 79: "toothbrush"}
    assert {index: CLASSES[index] for index in named} == named
    assert len(TAGS) == 6
    assert len(COLORS) == 10


def test_single_object() -> None:
    assert verdict(CAT, thing("cat")) == (1, 1, 1)
    assert verdict(CAT, thing("dog")) == (0, 0, 0)
    assert verdict(CAT) == (0, 0, 0)


def test_surplus_objects_pass_the_official_metric_but_not_the_strict_one() -> None:
    assert verdict(CAT, thing("cat"), thing("cat")) == (0, 0, 1)
    assert verdict(CAT, thing("cat"), thing("dog")) == (1, 1, 1), (
        "objects that nobody asked for do not count"
    )


def test_two_objects() -> None:
    assert verdict(CATS_AND_DOG, thing("cat"), thing("dog")) == (1, 1, 1)
    assert verdict(CATS_AND_DOG, thing("cat")) == (0.5, 0, 0)
    assert verdict(CATS_AND_DOG, thing("cat"), thing("cat"), thing("dog")) == (0.5, 0, 1)


@pytest.mark.parametrize(
    "n, graded", [(0, 0), (2, 0.5), (3, 0.75), (4, 1), (5, 0.75), (7, 0.25), (8, 0)]
)
def test_counting(n: int, graded: float) -> None:
    right = float(n == 4)
    assert verdict(FOUR_CATS, *[thing("cat")] * n) == (graded, right, right)


def test_counting_without_exclude_allows_surplus_objects() -> None:
    assert verdict(asked("counting", want("cat", 2)), *[thing("cat")] * 3) == (0.5, 0, 1)


def test_a_count_far_above_the_asked_falls_below_0_only_in_the_reference() -> None:
    assert both(CAT, *[thing("cat")] * 5) == (0, -3)
    assert both(FOUR_CATS, *[thing("cat")] * 10) == (0, -0.5)


def test_colors() -> None:
    assert verdict(RED_CAT, thing("cat", color="red")) == (1, 1, 1)
    assert verdict(RED_CAT, thing("cat", color="blue")) == (0.5, 0, 0)
    assert verdict(RED_CAT) == (0, 0, 0)


def test_the_official_metric_reads_the_colours_of_the_best_scored_only() -> None:
    sure, unsure = thing("cat", score=0.9, color="red"), thing("cat", score=0.5, color="blue")
    assert verdict(RED_CAT, unsure, sure) == (0, 0, 1)
    assert (
        verdict(
            RED_CAT, thing("cat", score=0.6, color="blue"), thing("cat", score=0.5, color="red")
        )[2]
        == 0
    )


def test_colours_of_several_are_counted() -> None:
    three = asked("colors", want("cat", 3, color="red"))
    mixed = [thing("cat", color=color) for color in ("red", "blue", "red")]
    assert verdict(three, *mixed) == (pytest.approx((1 + 2 / 3) / 2), 0, 0)


def test_color_attribution() -> None:
    red, blue = thing("cat", color="red"), thing("dog", color="blue")
    assert verdict(RED_CAT_BLUE_DOG, red, blue) == (1, 1, 1)
    assert verdict(RED_CAT_BLUE_DOG, red, thing("dog", color="red")) == (0.75, 0, 0)
    assert verdict(RED_CAT_BLUE_DOG, red) == (0.5, 0, 0), "cat 1, red 1, dog 0, blue 0"


def test_position() -> None:
    assert verdict(DOG_LEFT_OF_CAT, thing("cat"), thing("dog", LEFT)) == (1, 1, 1)
    assert verdict(DOG_LEFT_OF_CAT, thing("cat"), thing("dog", RIGHT)) == (
        pytest.approx(2 / 3),
        0,
        0,
    )
    assert verdict(DOG_LEFT_OF_CAT, thing("cat"), thing("dog", TOP))[1:] == (0, 0)


def test_a_wrong_position_scores_0_and_1_at_once_in_the_reference() -> None:
    wrong = [thing("cat"), thing("dog", RIGHT)]
    assert both(DOG_LEFT_OF_CAT, *wrong) == (pytest.approx(2 / 3), 3 / 4), (
        "cat 1, dog 1, position 0 (and 1)"
    )
    right = [thing("cat"), thing("dog", LEFT)]
    assert both(DOG_LEFT_OF_CAT, *right) == (1, 1)


def test_a_position_relative_to_a_missing_object_is_0_in_both() -> None:
    lost = [thing("dog", LEFT)]
    assert both(DOG_LEFT_OF_CAT, *lost) == (pytest.approx(1 / 3), pytest.approx(1 / 3)), (
        "cat 0, dog 1, position 0"
    )
    assert verdict(DOG_LEFT_OF_CAT, *lost)[1:] == (0, 0)


def test_a_position_without_the_object_is_0_in_both() -> None:
    assert both(DOG_LEFT_OF_CAT, thing("cat")) == (pytest.approx(1 / 3), pytest.approx(1 / 3)), (
        "cat 1, dog 0, position 0"
    )


def test_every_object_must_stand_right_to_every_target() -> None:
    two_dogs = asked("position", want("cat"), want("dog", 2, position=["left of", 0]))
    assert verdict(two_dogs, thing("cat"), thing("dog", LEFT), thing("dog", LEFT)) == (1, 1, 1)
    assert verdict(two_dogs, thing("cat"), thing("dog", LEFT), thing("dog", RIGHT))[1:] == (0, 0)
    two_cats = asked("position", want("cat", 2), want("dog", position=["left of", 0]))
    assert verdict(two_cats, thing("cat"), thing("cat", LEFT), thing("dog", LEFT))[1:] == (0, 0)


def test_colour_and_position_together() -> None:
    task = asked("position", want("cat"), want("dog", color="red", position=["left of", 0]))
    red, blue = thing("dog", LEFT, color="red"), thing("dog", LEFT, color="blue")
    assert verdict(task, thing("cat"), red) == (1, 1, 1)
    # cat 1, dog 1, colour 0, position 0: the reference leaves the position out.
    assert both(task, thing("cat"), blue) == (0.5, pytest.approx(2 / 3))
    # cat 1, dog 0, colour 0, position 0: the reference adds one 0 for the two.
    assert both(task, thing("cat")) == (0.25, pytest.approx(1 / 3))
    assert verdict(task, thing("cat"), blue)[1:] == (0, 0)


def test_a_target_in_the_wrong_colour_is_no_target() -> None:
    task = asked("position", want("cat", color="red"), want("dog", position=["left of", 0]))
    assert verdict(task, thing("cat", color="blue"), thing("dog", LEFT))[1:] == (0, 0)
    assert verdict(task, thing("cat", color="red"), thing("dog", LEFT)) == (1, 1, 1)


def test_strict_and_graded_do_not_read_exclude() -> None:
    no_dogs = asked("single_object", want("cat"), exclude=[want("dog", 1)])
    assert verdict(no_dogs, thing("cat"), thing("dog")) == (1, 1, 0)


def test_detections_count_above_the_threshold_of_their_tag() -> None:
    seen = [thing("cat", score=score) for score in (0.3, 0.31, 0.9, 0.91)]
    assert len(select(seen, parse(CAT, "p").threshold)[15]) == 3
    assert len(select(seen, parse(FOUR_CATS, "p").threshold)[15]) == 1
    assert select(seen[:1], 0.3) == {}


def test_the_16_best_of_a_class_are_kept_in_order() -> None:
    seen = [thing("cat", score=0.31 + 0.01 * i) for i in range(20)] + [thing("dog")]
    by_label = select(seen, 0.3)
    assert [round(d.score, 2) for d in by_label[15]] == [
        round(0.5 - 0.01 * i, 2) for i in range(16)
    ]
    assert len(by_label[16]) == 1


def test_only_colours_that_a_verdict_reads_are_classified() -> None:
    cats = [thing("cat", score=score) for score in (0.5, 0.9, 0.7)]
    by_label = select([*cats, thing("dog")], 0.3)
    assert [d.score for d in to_color(parse(RED_CAT, "p"), by_label)] == [0.9]
    assert to_color(parse(asked("colors", want("cat", 4, color="red")), "p"), by_label) == []
    assert to_color(parse(CATS_AND_DOG, "p"), by_label) == []


@pytest.mark.parametrize(
    "first, second, expected",
    [
        (LEFT, MIDDLE, {"left of"}),
        (RIGHT, MIDDLE, {"right of"}),
        (TOP, MIDDLE, {"above"}),
        (MIDDLE, TOP, {"below"}),
        ((0, 0, 20, 20), MIDDLE, {"left of", "above"}),
        (MIDDLE, MIDDLE, set()),
        ((43, 40, 63, 60), MIDDLE, set()),  # offset 3, slack 0.1 x 40 = 4
        # offset 5, 1 beyond the slack of 4: a share of 0.2
        ((45, 40, 65, 60), MIDDLE, set()),
        # offset 8.1, 4.1 beyond the slack: 0.506
        ((48.1, 40, 68.1, 60), MIDDLE, {"right of"}),
        # offset 9, 5 beyond the slack: 0.556
        ((49, 40, 69, 60), MIDDLE, {"right of"}),
        # offset 8, 4 beyond the slack: exactly 0.5, which does not exceed
        ((48, 40, 68, 60), MIDDLE, set()),
        # offset (30, 15), beyond (26, 11), length 33.5: 0.775 and 0.328
        ((70, 55, 90, 75), MIDDLE, {"right of"}),
        # the slack differs by axis: heights sum to 120, so 12 of the 30 are slack
        ((40, 0, 60, 100), (40, 70, 60, 90), {"above"}),
        ((40, 0, 60, 100), (40, 60, 60, 80), set()),  # 20 - 12 = 8: a share of 0.4
    ],
)
def test_relations(first: Box, second: Box, expected: set[str]) -> None:
    assert relations(thing("cat", first), thing("dog", second)) == expected


def test_grade_and_nonstrict_are_the_parts_of_a_verdict() -> None:
    task = parse(RED_CAT_BLUE_DOG, "p")
    by_label = select([thing("cat", color="red")], 0.3)
    assert grade(task, by_label, "fixed") == (0.5, False)
    assert grade(task, by_label, "reference") == (0.5, False)
    assert nonstrict(task, by_label) is False


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({}, "tag is missing"),
        ({"tag": "colour"}, "tag = 'colour' is unknown; did you mean 'colors'"),
        ({"tag": "counting"}, "include is missing or empty"),
        ({"tag": "counting", "include": []}, "include is missing or empty"),
        ({"tag": "counting", "include": "cat"}, "include = 'cat' is not a list"),
        (asked("counting", "cat"), r"include\[0\] = 'cat' is not an object"),
        (asked("counting", {"count": 1}), r"include\[0\].class is missing"),
        (asked("counting", want("mouse")), r"include\[0\].class = 'mouse' is unknown"),
        (
            asked("counting", want("cell fone")),
            r"include\[0\].class = 'cell fone' is unknown; did you mean 'cell phone'",
        ),
        (
            asked("counting", {"class": "cat"}),
            r"include\[0\].count = None is not a whole number of at least 1",
        ),
        (asked("counting", want("cat", 0)), r"include\[0\].count = 0 is not"),
        (asked("counting", want("cat", True)), r"include\[0\].count = True is not"),
        (asked("colors", want("cat", color="rot")), r"include\[0\].color = 'rot' is unknown"),
        (
            asked("position", want("cat"), want("dog", position="left")),
            r"include\[1\].position = 'left' is not",
        ),
        (
            asked("position", want("cat"), want("dog", position=["on", 0])),
            r"include\[1\].position\[0\] = 'on' is unknown",
        ),
        (
            asked("position", want("cat"), want("dog", position=["above", 1])),
            r"include\[1\].position\[1\] = 1 is not the index of an earlier entry: 0 \.\. 0",
        ),
        (
            asked("position", want("cat", position=["above", 0])),
            r"include\[0\].position\[1\] = 0 is not .*: the first has none",
        ),
        (
            asked("counting", want("cat"), exclude=[want("dogg")]),
            r"exclude\[0\].class = 'dogg'.*did you mean 'dog'",
        ),
    ],
)
def test_bad_metadata_is_named_with_its_prompt_and_field(
    metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"the metadata of the prompt 'a photo': {message}"):
        parse(metadata, "a photo")
