"""PickScore, CLIPScore, aesthetic and HPS v2: formulas, and tiny random models from disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision import transforms
from transformers import CLIPModel, CLIPProcessor

import reward_models
from reward_models import clipscore
from reward_models.aesthetic import Aesthetic, Head
from reward_models.clipscore import ClipScore
from reward_models.pickscore import PickScore
from tests.reward_models import tiny

CLIP_SCORERS = ("pickscore", "clipscore", "aesthetic", "hpsv2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Constructor options that name local files, by scorer."""
    folder = tmp_path_factory.mktemp("clip")
    clip = str(tiny.save_clip(folder / "clip"))
    return {
        "pickscore": {"path": clip},
        "clipscore": {"path": clip},
        "aesthetic": {
            "path": str(tiny.save_head(folder / "aesthetic-model.pth")),
            "clip_path": clip,
        },
        "hpsv2": {
            "path": str(tiny.save_open_clip(folder / "hps.pt")),
            "architecture": tiny.OPEN_CLIP,
        },
    }


def score(scorer: Any, order: np.ndarray | None = None) -> np.ndarray:
    images = tiny.images()
    order = np.arange(len(images)) if order is None else order
    result = scorer(images[order], [tiny.PROMPTS[i] for i in order], [{}] * len(order)).score
    assert result.dtype == np.float32
    assert result.shape == (len(order),)
    assert np.isfinite(result).all()
    return result


class FixedClip(torch.nn.Module):
    """Embeds every image as (3, 4) and every prompt as (2, 0): a cosine of 0.6."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(100.0).log())
        self.config = SimpleNamespace(projection_dim=2)
        self.dtype = torch.float32

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(
            pooler_output=torch.tensor([[3.0, 4.0]]).repeat(len(pixel_values), 1)
        )

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(pooler_output=torch.tensor([[2.0, 0.0]]).repeat(len(input_ids), 1))


@pytest.fixture(scope="module")
def processor(weights: dict[str, dict[str, str]]) -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(weights["pickscore"]["path"])


def test_pickscore_is_the_logit_over_26(processor: CLIPProcessor) -> None:
    assert score(PickScore(model=FixedClip(), processor=processor)) == pytest.approx([60 / 26] * 5)


def test_clipscore_is_a_hundred_cosines_over_30(processor: CLIPProcessor) -> None:
    model = FixedClip()
    model.logit_scale.data.fill_(0.0)  # the temperature is not read
    assert score(ClipScore(model=model, processor=processor)) == pytest.approx([2.0] * 5)


def test_aesthetic_is_linear_in_the_unit_embedding(processor: CLIPProcessor) -> None:
    head = Head(2)
    for name, parameter in head.named_parameters():
        parameter.data.zero_()
        if name.endswith("weight"):
            parameter.data[0, 0] = 1.0
    # An activation would not let -10 pass: 0.6 - 10 + 15.
    head.layers[0].bias.data[0], head.layers[7].bias.data[0] = -10.0, 15.0
    head.train()  # the scorer must switch dropout off
    assert score(Aesthetic(model=FixedClip(), processor=processor, head=head)) == pytest.approx(
        [5.6] * 5, abs=1e-5
    )


def test_a_clone_of_the_original_aesthetic_repository_has_the_head(
    tmp_path: Path, weights: dict[str, dict[str, str]]
) -> None:
    options = weights["aesthetic"]
    file = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    file.write_bytes(Path(options["path"]).read_bytes())
    (tmp_path / "ava+logos-l14-reluMSE.pth").write_bytes(b"another head")
    clone = Aesthetic(path=str(tmp_path), clip_path=options["clip_path"])
    np.testing.assert_array_equal(score(clone), score(Aesthetic(**options)))
    file.unlink()
    words = r"has no aesthetic-model\.pth or sac\+logos\+ava1-l14-linearMSE\.pth"
    with pytest.raises(ValueError, match=words):
        Aesthetic(path=str(tmp_path), clip_path=options["clip_path"])


@pytest.mark.parametrize("shape", [(40, 40), (40, 57), (71, 48), (32, 32), (20, 24)])
def test_bilinear_resizing_is_that_of_flow_grpo(
    shape: tuple[int, int], weights: dict[str, dict[str, str]]
) -> None:
    scorer = ClipScore(**weights["clipscore"], resize="bilinear")
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    processor = scorer.processor.image_processor
    reference = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop((32, 32)),
            transforms.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    expected = reference(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.uint8) / 255.0)
    torch.testing.assert_close(scorer.pixels(processor, images), expected, rtol=0, atol=1e-6)


def test_the_resizing_changes_the_score_and_another_is_refused(
    weights: dict[str, dict[str, str]],
) -> None:
    bicubic, bilinear = (
        score(ClipScore(**weights["clipscore"], resize=resize)) for resize in clipscore.RESIZES
    )
    np.testing.assert_array_equal(bicubic, score(ClipScore(**weights["clipscore"])))
    assert (bicubic != bilinear).all()
    with pytest.raises(ValueError, match="resize = 'nearest' is not one of bicubic, bilinear"):
        ClipScore(resize="nearest")


def test_pickscore_agrees_with_the_models_logits(weights: dict[str, dict[str, str]]) -> None:
    folder = weights["pickscore"]["path"]
    model, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    inputs = processor(
        text=tiny.PROMPTS,
        images=list(tiny.images()),
        padding=True,
        truncation=True,
        max_length=77,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.diagonal() / 26
    assert expected.std() > 0.01
    assert score(PickScore(path=folder)) == pytest.approx(expected.numpy(), abs=1e-5)


def test_hpsv2_agrees_with_open_clip_on_square_images(weights: dict[str, dict[str, str]]) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(
        tiny.OPEN_CLIP, pretrained=weights["hpsv2"]["path"]
    )
    pixels = torch.stack([preprocess(Image.fromarray(image)) for image in tiny.images()])
    with torch.no_grad():
        image, text, _ = model.eval()(pixels, open_clip.get_tokenizer(tiny.OPEN_CLIP)(tiny.PROMPTS))
    expected = 100 * (image * text).sum(-1)
    assert expected.std() > 0.1
    assert score(reward_models.build("hpsv2", **weights["hpsv2"])) == pytest.approx(
        expected.numpy(), abs=1e-3
    )


def test_hpsv2_sees_the_sides_of_a_wide_image(weights: dict[str, dict[str, str]]) -> None:
    scorer = reward_models.build("hpsv2", **weights["hpsv2"])
    wide = np.full((2, 32, 64, 3), 128, np.uint8)
    wide[1, :, :8] = 255  # a centre crop would cut this away
    one, other = scorer(wide, ["a cat"] * 2, [{}] * 2).score
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize("name", CLIP_SCORERS)
def test_permuting_the_batch_permutes_the_scores(
    name: str, weights: dict[str, dict[str, str]]
) -> None:
    scorer = reward_models.build(name, **weights[name])
    order = np.array([3, 0, 4, 1, 2])
    before = score(scorer)
    assert len(set(before.round(4))) > 1
    assert score(scorer, order) == pytest.approx(before[order], abs=1e-4)


@pytest.mark.parametrize("name", CLIP_SCORERS)
def test_the_batch_size_does_not_change_the_scores(
    name: str, weights: dict[str, dict[str, str]]
) -> None:
    whole, parts = (reward_models.build(name, batch_size=size, **weights[name]) for size in (16, 2))
    assert score(parts) == pytest.approx(score(whole), abs=1e-4)


@pytest.mark.parametrize("name", CLIP_SCORERS)
def test_no_images_no_scores(name: str, weights: dict[str, dict[str, str]]) -> None:
    scorer = reward_models.build(name, **weights[name])
    assert scorer(tiny.images()[:0], [], []).score.shape == (0,)


@pytest.mark.parametrize("name", CLIP_SCORERS)
def test_half_precision_scores_nearly_the_same_and_the_model_moves(
    name: str, weights: dict[str, dict[str, str]]
) -> None:
    scorer = reward_models.build(name, dtype="bfloat16", device="cpu", **weights[name])
    whole = score(reward_models.build(name, **weights[name]))
    assert scorer.model.logit_scale.dtype == torch.bfloat16
    assert np.abs(score(scorer) - whole).max() < 0.1 * np.abs(whole).max() + 0.05
    assert scorer.to("meta").model.logit_scale.device.type == "meta"


def test_prompts_are_cut_at_77_tokens(weights: dict[str, dict[str, str]]) -> None:
    scorer = reward_models.build("pickscore", **weights["pickscore"])
    image = np.repeat(tiny.images(1), 3, 0)
    same, more, other = scorer(image, ["ab " * 60, "ab " * 90, "ba " * 60], [{}] * 3).score
    assert same == more != other


def test_a_repeated_prompt_is_embedded_once(
    weights: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = PickScore(**weights["pickscore"])
    read: list[str] = []
    tower = scorer.embed_prompts
    monkeypatch.setattr(
        scorer, "embed_prompts", lambda prompts: read.extend(prompts) or tower(prompts)
    )
    score(scorer)
    assert read == list(dict.fromkeys(tiny.PROMPTS))


def test_a_head_for_another_clip_is_refused(
    weights: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    torch.save(Head(24).state_dict(), tmp_path / "head.pth")
    with pytest.raises(
        ValueError, match="reads embeddings of width 24, but the CLIP of clip_path gives 16"
    ):
        Aesthetic(path=str(tmp_path / "head.pth"), clip_path=weights["clipscore"]["path"])
