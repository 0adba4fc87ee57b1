"""The card of an exported policy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from config import awm, dgpo, elbo_pg, flow_grpo, nft, shared_state, tp_grpo
from tp_grpo.method.objectives import OBJECTIVES
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
    assert "the files' alpha is the rank" in card
    config.lora.rank = 0
    assert "alpha" not in model_card.write(config.to_dict(), [])
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


@pytest.mark.parametrize(
    "algorithm, method",
    [
        (flow_grpo, "Flow-GRPO (arXiv 2505.05470)"),
        (nft, "DiffusionNFT (arXiv 2509.16117)"),
        (elbo_pg, "ELBO-PG (arXiv 2602.04663)"),
        (awm, "AWM, advantage-weighted matching (arXiv 2509.25050)"),
        (dgpo, "DGPO (arXiv 2510.08425)"),
        (shared_state, "matching of clean images on shared-state groups"),
    ],
)
def test_every_algorithm_is_named_with_its_paper(algorithm: ModuleType, method: str) -> None:
    config = algorithm.get_config("geneval_sd3").to_dict()
    card = model_card.write(config, [])
    assert f", trained with {method} by tp_grpo." in card
    for paper in re.findall(r"arXiv ([\d.]+)", method):
        assert f"[arXiv {paper}](https://arxiv.org/abs/{paper})" in card


@pytest.mark.parametrize(
    "changes, method",
    [
        (
            {"objective.name": "guard"},
            "GRPO-Guard (arXiv 2510.22319), step rewards of TurningPoint-GRPO (arXiv 2602.06422)",
        ),
        (
            {"objective.name": "dppo", "credit.name": "terminal", "advantage.combine": "gdpo"},
            "Flow-DPPO (arXiv 2606.11025), step rewards of Flow-GRPO (arXiv 2505.05470), "
            "advantages of GDPO (arXiv 2601.05242)",
        ),
        (
            {"sample.groups": "shared_state", "credit.name": "terminal"},
            "GRPO on shared-state groups",
        ),
        ({"objective.name": "mine"}, "My Loss, step rewards of TurningPoint-GRPO"),
    ],
)
def test_what_a_run_changes_is_named(
    changes: dict[str, str], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "mine", replace(OBJECTIVES["grpo"], title="My Loss"))
    config = tp_grpo.get_config("shapes_smoke")
    config.update_from_flattened_dict(changes)
    assert f"trained with {method}" in model_card.write(config.to_dict(), [])


@pytest.mark.parametrize(
    "algorithm, changes, words",
    [
        (nft, {}, "10 steps of the ODE, guidance 1.0"),
        (shared_state, {}, "10 steps, one of 9 stochastic (cps (arXiv 2509.05952), noise level"),
        (
            tp_grpo,
            {"sample.window": "sliding", "sample.window_size": 2},
            "10 steps, 2 of them stochastic in",
        ),
    ],
)
def test_the_card_says_how_images_were_sampled(
    algorithm: ModuleType, changes: dict[str, object], words: str
) -> None:
    config = algorithm.get_config("pickscore_sd3")
    config.update_from_flattened_dict(changes)
    card = model_card.write(config.to_dict(), [])
    assert f"- Sampling in training: {words}" in card
    assert ("arXiv 2507.21802" in card) == ("sample.window" in changes)
