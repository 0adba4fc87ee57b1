"""What learns, with the optimizer that is an option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from tp_grpo import models
from tp_grpo.trainer import Trainer

Smoke = Callable[..., ConfigDict]
# A whole transformer's matrices, for of less than 4096 numbers bitsandbytes keeps 32-bit moments.
EIGHT_BIT = {"train__optimizer": "adamw_8bit", "lora__rank": 0, "train__learning_rate": 1e-4}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.learner.policy.parameters.items()}


def test_a_run_begins_with_the_lora_of_another_and_resumes_its_own(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = smoke(run_name="first", epochs=1)
    Trainer(first).run()
    adapter = str(Path(first.output_dir) / "first" / "adapter")
    average = load_file(f"{adapter}/adapter_model.safetensors")
    config = smoke(run_name="second", epochs=1, lora__init=adapter, train__beta=1e-3)
    second = Trainer(config)
    begun = weights(second)
    for name, value in begun.items():
        key = "base_model.model." + name.replace(".default", "")
        scale = config.lora.alpha / config.lora.rank if "lora_B" in name else 1
        torch.testing.assert_close(scale * value, average[key], rtol=1e-6, atol=1e-7)
    second.run()
    trained = weights(second)
    assert any(not torch.equal(trained[name], begun[name]) for name in begun)
    config.epochs = 2
    resumed = Trainer(config)
    resumed.run_folder.restore(resumed.learner)
    resumed.rewards.close()
    assert all(torch.equal(value, trained[name]) for name, value in weights(resumed).items())
    config.run_name, config.lora.rank = "third", 8
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=r"has rank 16, the LoRA to be trained lora.rank = 8"):
        Trainer(config)


def test_adam_in_eight_bits_keeps_bytes_and_resumes_bit_for_bit(smoke: Smoke) -> None:
    straight = Trainer(smoke(run_name="straight", epochs=2, **EIGHT_BIT))
    before = weights(straight)
    straight.run()
    after = weights(straight)
    moments = [state["state1"].dtype for state in straight.learner.optimizer.state.values()]
    assert torch.uint8 in moments and any(
        not torch.equal(after[name], before[name]) for name in after
    )

    Trainer(smoke(run_name="twice", epochs=1, **EIGHT_BIT)).run()
    resumed = Trainer(smoke(run_name="twice", epochs=2, **EIGHT_BIT))
    resumed.run()
    assert all(torch.equal(value, after[name]) for name, value in weights(resumed).items())


def test_adam_in_eight_bits_follows_adam(smoke: Smoke) -> None:
    moved = []
    for optimizer in ("adamw", "adamw_8bit"):
        trainer = Trainer(smoke(run_name=optimizer, **EIGHT_BIT | {"train__optimizer": optimizer}))
        before = weights(trainer)
        trainer.run()
        moved.append(
            torch.cat(
                [(value - before[name]).flatten() for name, value in weights(trainer).items()]
            )
        )
    assert torch.cosine_similarity(moved[0], moved[1], dim=0) > 0.95
