"""The embedded world: captions, renderer, scorer, shipped weights, a miniature pretraining."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from config.recipes import SHAPES
from reward_models.shapes import COLORS, ShapesScorer, components, judge
from reward_models.shapes import SHAPES as NAMES
from tp_grpo.shapes import captions, card, pretrain
from tp_grpo.shapes.model import T5_TOKENS, build_clip_tokenizer, build_t5_tokenizer
from tp_grpo.shapes.muon import orthogonalize
from tp_grpo.shapes.render import render


def draw(n: int, seed: int) -> tuple[np.ndarray, list[captions.Caption]]:
    rng = np.random.default_rng(seed)
    pool = captions.train() + captions.held_out()
    chosen = [pool[i] for i in rng.integers(len(pool), size=n)]
    return np.stack([render(metadata, rng) for _, metadata in chosen]), chosen


def test_captions_are_many_distinct_and_split() -> None:
    train, held = captions.train(), captions.held_out()
    words = [prompt for prompt, _ in train + held]
    assert len(words) == len(set(words)) == 2856
    tags = {metadata["tag"] for _, metadata in train}
    assert tags == {"single", "counting", "pair", "position"}
    assert {metadata["tag"] for _, metadata in held} == {"pair", "position"}
    share = len(held) / sum(metadata["tag"] in ("pair", "position") for _, metadata in train + held)
    assert 0.08 < share < 0.12
    assert not {p for p, _ in train} & {p for p, _ in held}
    for example in (
        "a red circle",
        "three yellow crosses",
        "a red circle and a blue square",
        "a green triangle above a purple square",
    ):
        assert example in words


def test_rendered_truth_scores_one_and_shuffled_captions_do_not() -> None:
    images, chosen = draw(1500, seed=1)
    scorer = ShapesScorer()
    metadata = [m for _, m in chosen]
    truth = scorer(images, [p for p, _ in chosen], metadata)
    assert truth.extras["exact"].mean() >= 0.995
    assert truth.extras["graded"].mean() >= 0.999
    shuffled = scorer(images, [p for p, _ in chosen], metadata[7:] + metadata[:7])
    assert shuffled.extras["exact"].mean() < 0.02
    assert shuffled.extras["graded"].mean() < 0.65


def test_the_parts_say_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    red_circle = {"color": "red", "shape": "circle", "count": 1}
    blue_square = {"color": "blue", "shape": "square", "count": 1}
    image = render({"objects": [red_circle, blue_square], "relation": "above"}, rng)
    right = {"objects": [red_circle, blue_square], "relation": "above"}
    assert judge(image, right) == {
        "count": 1,
        "color": 1,
        "shape": 1,
        "position": 1,
        "graded": 1,
        "exact": 1,
    }
    flipped = judge(image, {**right, "relation": "below"})
    assert flipped["position"] == 0
    assert flipped["exact"] == 0
    assert flipped["graded"] == 0.75
    missing = judge(
        image,
        {"objects": [red_circle, blue_square, {"color": "black", "shape": "cross", "count": 2}]},
    )
    assert missing["count"] == 0.5
    assert missing["color"] == pytest.approx(0.5)
    assert missing["exact"] == 0
    surplus = judge(image, {"objects": [red_circle]})
    assert surplus["count"] == 0
    assert surplus["color"] == surplus["shape"] == 0.5
    wrong_color = judge(image, {"objects": [{**red_circle, "color": "black"}, blue_square]})
    assert wrong_color["color"] < 0.6
    assert wrong_color["shape"] == 1
    assert wrong_color["count"] == 1
    blank = judge(np.full((48, 48, 3), 240, np.uint8), right)
    assert blank["graded"] == 0
    assert blank["exact"] == 0


def test_every_color_and_shape_is_told_from_the_others() -> None:
    rng = np.random.default_rng(0)
    for color in COLORS:
        for shape in NAMES:
            (component,) = components(
                render({"objects": [{"color": color, "shape": shape, "count": 1}]}, rng)
            )
            assert [(c, s) for c in COLORS for s in NAMES if component.is_a(c, s)] == [
                (color, shape)
            ]


def test_the_score_mixes_exact_and_graded() -> None:
    images, chosen = draw(20, seed=2)
    metadata = [chosen[(i + i % 2) % 20][1] for i in range(20)]
    result = ShapesScorer(exact_share=0.25)(images, [""] * 20, metadata)
    np.testing.assert_allclose(
        result.score, 0.25 * result.extras["exact"] + 0.75 * result.extras["graded"], rtol=1e-6
    )
    with pytest.raises(ValueError, match="exact_share = 2"):
        ShapesScorer(exact_share=2)
    with pytest.raises(ValueError, match="names no objects"):
        ShapesScorer()(images[:1], ["a cat"], [{}])


def asked(**changes: object) -> dict[str, object]:
    return {"objects": [{"color": "red", "shape": "circle", **changes}]}


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"objects": []}, r"objects = \[\] must be a list with at least one"),
        ({"objects": ["red circle"]}, "an object is 'red circle'; its color must be one of red, "),
        (asked(color="orange"), "its color must be one of red, "),
        (asked(shape="star"), "its shape must be one of circle, "),
        (asked(count="2"), "count = '2' must be a whole number from 1 on"),
        (asked(count=2) | {"relation": "over"}, "relation = 'over' must be one of "),
        (asked() | {"relation": "above"}, "a relation is between two objects; there are 1"),
    ],
)
def test_metadata_that_cannot_be_judged_are_named_before_a_run(
    metadata: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=f"shapes: the metadata of 'a prompt': .*{words}"):
        ShapesScorer().check(["a prompt"], [metadata])


def test_all_captions_can_be_judged() -> None:
    for pairs in (captions.train(), captions.held_out()):
        prompts, metadata = zip(*pairs, strict=True)
        ShapesScorer().check(prompts, metadata)


def test_each_word_is_one_token() -> None:
    clip, t5 = build_clip_tokenizer(), build_t5_tokenizer()
    for prompt, _ in captions.train()[::50]:
        words = prompt.split()
        assert clip.tokenize(prompt) == [word + "</w>" for word in words]
        assert t5.tokenize(prompt) == ["▁" + word for word in words]
        assert len(t5(prompt).input_ids) == len(words) + 1 <= T5_TOKENS
    assert clip.eos_token_id != 2, "id 2 would switch CLIP to its legacy pooling"


def test_the_shipped_weights_are_those_of_the_card() -> None:
    folder = Path(SHAPES)
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert digest in (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 6e6


def test_the_stock_pipeline_draws_what_the_card_says() -> None:
    figures = json.loads((Path(SHAPES) / "figures.json").read_text())["figures"]
    expected = figures["training captions, no guidance"]["all"]["exact"]
    pipeline = StableDiffusion3Pipeline.from_pretrained(SHAPES)
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(5)
    pool = captions.train()
    chosen = [pool[i] for i in rng.integers(len(pool), size=128)]
    images = card.generate(pipeline, [prompt for prompt, _ in chosen], 1.0, seed=5)
    exact = card.overall(card.by_family(images, chosen), chosen)["exact"]
    assert abs(exact - expected) < 4 * (expected * (1 - expected) / 128) ** 0.5


def test_a_miniature_of_the_pretraining(tmp_path: Path) -> None:
    schedule = pretrain.Schedule(images=64, batch_size=8, vae_steps=30, flow_steps=6, card_images=8)
    pretrain.pretrain(tmp_path, seed=1, schedule=schedule)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    assert {p.dtype for p in pipeline.text_encoder.parameters()} == {torch.float32}
    assert "--flow-steps 6" in (tmp_path / "README.md").read_text()
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["reconstructed truth"]["all"]["psnr_db"] > 8, (
        "30 steps should at least learn the light ground"
    )


def test_muon_orthogonalizes() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 48), (2, 48, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=5))
        assert singular.min() > 0.5
        assert singular.max() < 1.3
