"""Prompt sets: words that agree with their metadata, disjoint splits, the same files every time."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_grpo.data.sets import coco, draw, general_ocr, geneval, grammar, pickscore

# Hand-made, not derived from the module: everything whose plural is not the name and an s.
PLURALS = {
    "people": "person",
    "buses": "bus",
    "benches": "bench",
    "sheep": "sheep",
    "wine glasses": "wine glass",
    "knives": "knife",
    "sandwiches": "sandwich",
    "couches": "couch",
    "computer mice": "computer mouse",
    "toothbrushes": "toothbrush",
    "pairs of skis": "skis",
    "pairs of scissors": "scissors",
    "heads of broccoli": "broccoli",
}
UNITS = {"pair of": ("skis", "scissors"), "head of": ("broccoli",)}
COLOR_WORDS = {
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
}
ALL = dict.fromkeys(geneval.TAGS, 40)
VOWELS = ("airplane", "umbrella", "elephant", "apple", "orange", "oven")


def noun_phrase(words: str) -> dict[str, Any]:
    """The clause that English words ask for, read without the module under test."""
    first, rest = words.split(" ", 1)
    if first in ("two", "three", "four"):
        name = PLURALS[rest] if rest in PLURALS else rest.removesuffix("s")
        assert rest in PLURALS or name not in PLURALS.values(), (
            f"{rest} is not the plural of {name}"
        )
        return {"class": name, "count": {"two": 2, "three": 3, "four": 4}[first]}
    assert first == ("an" if rest.startswith(VOWELS) else "a"), words
    unit = next((unit for unit in UNITS if rest.startswith(unit)), None)
    rest = rest.removeprefix(unit or "").strip()
    color, _, colored = rest.partition(" ")
    clause = (
        {"class": colored, "count": 1, "color": color} if color in COLOR_WORDS and colored else None
    )
    clause = clause or {"class": rest, "count": 1}
    assert (
        (clause["class"] in UNITS[unit])
        if unit
        else not any(clause["class"] in names for names in UNITS.values())
    )
    return clause


def parsed(prompt: str) -> dict[str, Any]:
    """The metadata, but for the tag, that a prompt's words ask for."""
    words = prompt.removeprefix("a photo of ")
    assert words != prompt
    related = re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", words)
    if related:
        first, second = noun_phrase(related[1]), noun_phrase(related[3])
        return {"include": [second, {**first, "position": [related[2], 0]}]}
    clauses = [noun_phrase(part) for part in words.split(" and ")]
    if clauses[0]["count"] == 1:
        return {"include": clauses}
    return {"include": clauses, "exclude": [{**clauses[0], "count": clauses[0]["count"] + 1}]}


def tag_of(metadata: dict[str, Any]) -> str:
    clauses = metadata["include"]
    if any("position" in clause for clause in clauses):
        return "position"
    if "exclude" in metadata:
        return "counting"
    colored = ["color" in clause for clause in clauses]
    assert all(colored) or not any(colored)
    return {
        (1, True): "colors",
        (2, True): "color_attr",
        (1, False): "single_object",
        (2, False): "two_object",
    }[len(clauses), colored[0]]


def test_coco_classes_stand_at_their_index() -> None:
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 80
    known = {
        0: "person",
        9: "traffic light",
        39: "bottle",
        49: "orange",
        57: "couch",
        62: "tv",
        79: "toothbrush",
    }
    known |= {64: "computer mouse", 65: "tv remote", 66: "computer keyboard"}
    assert {index: coco.CLASSES[index] for index in known} == known
    assert set(coco.COLORS) == COLOR_WORDS
    assert set(coco.NUMBERS.values()) == {2, 3, 4}


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_every_geneval_prompt_says_what_its_metadata_asks(seed: int) -> None:
    train, test = geneval.build(seed=seed, train=ALL, test=ALL)
    for entry in chain(train, test):
        asked = parsed(entry["prompt"])
        assert {**asked, "tag": tag_of(asked), "prompt": entry["prompt"]} == entry
        assert all(clause["class"] in coco.CLASSES for clause in entry["include"])
        names = [clause["class"] for clause in entry["include"]]
        colors = [clause["color"] for clause in entry["include"] if "color" in clause]
        assert len(set(names)) == len(names)
        assert len(set(colors)) == len(colors)
        assert not ("person" in names and entry["tag"] in ("colors", "color_attr"))
    assert Counter(e["tag"] for e in train) == Counter(e["tag"] for e in test) == Counter(ALL)


def test_every_class_can_be_counted_and_colored_in_english() -> None:
    train, _ = geneval.build(
        seed=0, train={"counting": 240, "colors": 790, "single_object": 80}, test={}
    )
    assert len(train) == len({entry["prompt"] for entry in train}) == 240 + 790 + 80
    assert all(parsed(entry["prompt"])["include"] == entry["include"] for entry in train)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_geneval_splits_share_no_scene_and_repeat_none(seed: int) -> None:
    train, test = geneval.build(seed=seed)
    scenes = [geneval.scene(entry) for entry in chain(train, test)]
    assert len(set(scenes)) == len(scenes)
    assert Counter(e["tag"] for e in test) == Counter(geneval.TEST_SIZES)


def test_the_same_scene_said_the_other_way_round() -> None:
    def position(first: str, relation: str, second: str) -> dict[str, Any]:
        include = [
            {"class": second, "count": 1},
            {"class": first, "count": 1, "position": [relation, 0]},
        ]
        return {"tag": "position", "include": include}

    assert geneval.scene(position("cat", "left of", "dog")) == geneval.scene(
        position("dog", "right of", "cat")
    )
    assert geneval.scene(position("cat", "above", "dog")) == geneval.scene(
        position("dog", "below", "cat")
    )
    assert geneval.scene(position("cat", "left of", "dog")) != geneval.scene(
        position("dog", "left of", "cat")
    )
    one, other = (
        {"class": "cat", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    )
    mixed = [{**one, "color": "blue"}, {**other, "color": "red"}]
    scenes = [
        geneval.scene({"tag": "color_attr", "include": i})
        for i in ([one, other], [other, one], mixed)
    ]
    assert scenes[0] == scenes[1] != scenes[2]


def test_all_scenes_of_a_tag_can_be_had_and_no_more() -> None:
    # 80 * 79 / 2 unordered pairs; 4 times as many positions, each worded in 2 ways; 80 * 3 counts.
    for tag, count in {
        "two_object": 3160,
        "position": 12640,
        "counting": 240,
        "colors": 790,
    }.items():
        train, test = geneval.build(seed=1, train={tag: count - 5}, test={tag: 5})
        assert len({geneval.scene(entry) for entry in train + test}) == count
        with pytest.raises(
            ValueError,
            match=rf"{tag}: {count} training and 1 test .* only {count} scenes; ask for at",
        ):
            geneval.build(seed=1, train={tag: count}, test={tag: 1})


def test_a_larger_training_set_leaves_the_test_set_as_it_is() -> None:
    assert geneval.build(seed=5, train={})[1] == geneval.build(seed=5)[1]
    assert geneval.build(seed=5)[1] != geneval.build(seed=6)[1]
    assert (
        pickscore.from_grammar(seed=5, train=10, test=20)[1]
        == pickscore.from_grammar(seed=5, train=99, test=20)[1]
    )
    assert (
        general_ocr.build(seed=5, train=10, test=20)[1]
        == general_ocr.build(seed=5, train=99, test=20)[1]
    )


def test_scenes_to_keep_out() -> None:
    official = {
        "tag": "counting",
        "include": [{"class": "bench", "count": 4}],
        "prompt": "a photo of four benchs",
    }
    keep_out = {geneval.scene(official)}
    train, test = geneval.build(
        seed=0, train={"counting": 200}, test={"counting": 39}, keep_out=keep_out
    )
    assert "a photo of four benches" not in {entry["prompt"] for entry in train + test}
    with pytest.raises(ValueError, match=r"only 239 scenes besides the 1 scenes to keep out"):
        geneval.build(seed=0, train={"counting": 240}, test={}, keep_out=keep_out)


def test_the_documented_metadata_is_what_its_prompts_ask() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "prompts.md").read_text("utf-8")
    shown = [json.loads(line) for line in page.splitlines() if line.startswith('{"tag"')]
    assert {entry["tag"] for entry in shown} == {"position", "counting", "colors"}
    assert all(
        {**parsed(entry["prompt"]), "tag": entry["tag"], "prompt": entry["prompt"]} == entry
        for entry in shown
    )


def test_an_unknown_tag() -> None:
    with pytest.raises(
        ValueError, match="geneval has no tag 'color'; its tags are single_object, two_object"
    ):
        geneval.build(seed=0, train={"color": 3})


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_ocr_prompts_have_one_pair_of_quotes_and_the_splits_share_no_word(seed: int) -> None:
    train, test = general_ocr.build(seed=seed, train=300, test=100)
    assert len(set(train)) == 300
    assert len(set(test)) == 100
    assert all(
        prompt.count('"') == 2 and general_ocr.target(prompt).strip()
        for prompt in chain(train, test)
    )
    trained, held_out = (
        [general_ocr.target(prompt) for prompt in prompts] for prompts in (train, test)
    )
    assert {text.casefold() for text in trained}.isdisjoint(text.casefold() for text in held_out)
    words_trained = {word.casefold() for text in trained for word in text.split()}
    assert words_trained.isdisjoint(text.casefold() for text in held_out if " " not in text)


@given(seed=st.integers(0, 10**6))
def test_a_held_out_text_is_in_no_training_text(seed: int) -> None:
    lists = grammar.shipped("general_ocr")
    train, test = general_ocr.split_texts(lists["words"], lists["phrases"], seed)
    assert len(test) == round(0.1 * len(lists["words"])) + round(0.1 * len(lists["phrases"]))
    trained = {general_ocr.same(part) for text in train for part in [text, *text.split()]}
    assert trained.isdisjoint(map(general_ocr.same, test))
    assert {" " in text for text in test} == {" " in text for text in train} == {True, False}


def test_texts_the_reward_cannot_tell_apart() -> None:
    assert general_ocr.same("Grand  OPENING") == general_ocr.same("grandopening") == "grandopening"
    for seed in range(20):
        train, test = general_ocr.split_texts(["Ab", "ab", "AB", "c"] * 2, [], seed)
        assert {text.lower() for text in train}.isdisjoint(text.lower() for text in test)


@pytest.mark.parametrize("name", ["general_ocr", "pickscore"])
def test_the_shipped_lists_are_sound(name: str) -> None:
    lists = grammar.shipped(name)
    slots = lists["slots"]
    phrases = [*lists["templates"], *chain.from_iterable(slots.values())]
    assert {slot for phrase in phrases for slot in grammar.SLOT.findall(phrase)} - {"text"} == set(
        slots
    )
    for listed in (lists["templates"], lists.get("words", []), lists.get("phrases", [])):
        assert len({general_ocr.same(text) for text in listed}) == len(listed)
    texts = [*lists.get("words", []), *lists.get("phrases", [])]
    assert not [text for text in texts if set(text) & set('"{}') or text != " ".join(text.split())]
    assert len(texts) > 500 or name != "general_ocr"


@pytest.mark.parametrize("name", ["general_ocr", "pickscore"])
def test_sentences_are_clean_english_on_one_line(name: str) -> None:
    build = {"general_ocr": general_ocr.build, "pickscore": pickscore.from_grammar}[name]
    train, test = build(seed=0, train=4000, test=1000)
    folded = [prompt.casefold() for prompt in train + test]
    assert len(set(folded)) == 5000
    for prompt in folded:
        assert not re.search(r"[{}]|\s\s|\n|,,|\s,", prompt), prompt
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]|\b(a|an|the) (a|an|the)\b", prompt), prompt
        assert len(prompt.split()) <= 77
    assert len(set(train) & set(test)) == 0


def test_a_sentence_says_no_phrase_twice() -> None:
    pair = grammar.Grammar(["{who} and {who}"], {"who": ["{cat}", "{cat}"], "cat": ["x", "y"]})
    assert {pair.sentence(Random(seed)) for seed in range(20)} == {"x and y", "y and x"}


def test_more_sentences_than_a_grammar_can_make() -> None:
    small = grammar.Grammar(["{who}"], {"who": ["x", "X", "y"]})
    rng = Random(0)
    with pytest.raises(
        ValueError, match=r"small: 3 distinct prompts were asked, but only about 2 can be made"
    ):
        draw.distinct(lambda: small.sentence(rng), 3, "small")


@given(st.integers(0, 60), st.integers(0, 10**6))
def test_a_drawn_order_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(draw.order(n, Random(seed))) == list(range(n))


def test_every_drawn_order_is_as_likely() -> None:
    orders = Counter(tuple(draw.order(3, Random(seed))) for seed in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())


def test_captions_of_the_hub_are_cleaned() -> None:
    captions = ["a cat", " A  Cat\n", "", None, "x " * 77, "x " * 78, "a dog"]
    assert pickscore.clean(captions) == ["A Cat", "a dog", ("x " * 77).strip()]
