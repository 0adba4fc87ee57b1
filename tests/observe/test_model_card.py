"""The card of an exported policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import flow_grpo, tp_grpo
from tp_grpo.observe import model_card

GAIN = {
    "name": "total",
    "epoch": 20,
    "before": 0.5,
    "after": 0.75,
    "change": 0.25,
    "se": 0.0125,
    "n": 96,
}


def test_the_card_says_what_was_trained_on_what_by_what_and_what_it_gave() -> None:
    config = tp_grpo.get_config("geneval_sd3")
    card = model_card.write(config.to_dict(), [GAIN])
    front = card.split("---")[1]
    licence = "license: other\nlicense_name: stabilityai"
    assert f"base_model: stabilityai/stable-diffusion-3.5-medium\n{licence}" in front
    assert "TurningPoint-GRPO (arXiv 2602.06422)" in card
    assert "LoRA of rank 32, alpha 64" in card
    assert "Rewards: geneval" in card
    assert f"Prompts: `{config.prompts.train}`" in card
    assert "(Stability AI Community License) binds this too" in card
    assert "seed 42" in card
    assert "| total | 0.5000 | 0.7500 | +0.2500 ± 0.0125 | 96 |" in card
    assert "after epoch 20" in card


def test_a_base_in_a_folder_is_no_hub_id(tmp_path: Path) -> None:
    """The hub refuses a card whose base_model is a path."""
    config = flow_grpo.get_config("pickscore_flux")
    config.model.path = str(tmp_path)
    card = model_card.write(config.to_dict(), [])
    assert "base_model" not in card
    assert "license" not in card.split("---")[1]
    assert "- Licence: the base model's binds this too." in card
    assert "Not evaluated yet." in card


@pytest.mark.parametrize("name", ["terminal", "incremental", "turning_point", "value"])
def test_every_credit_method_has_words(name: str) -> None:
    config = tp_grpo.get_config("shapes_smoke")
    config.credit.name, config.lora.rank = name, 0
    assert "the whole transformer" in model_card.write(config.to_dict(), []).lower()
