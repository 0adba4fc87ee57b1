"""The adapter_config.json of peft: what is not honoured is refused by name, before weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from tp_grpo.models import export


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A folder that peft wrote by options of a LoraConfig."""

    def save(**options: Any) -> Path:
        model = nn.ModuleDict({"to_q": nn.Linear(4, 4), "proj_out": nn.Linear(4, 4)})
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], **options)
        get_peft_model(model, config).save_pretrained(tmp_path / "peft")
        return tmp_path / "peft"

    return save


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank_pattern": {"to_q": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"to_q": 2}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True, "alpha_pattern": {"to_q": 2}}, "alpha_pattern, use_dora"),
    ],
)
def test_options_of_peft_that_are_not_honoured_are_refused_before_weights_load(
    write: Callable[..., Path], options: dict[str, Any], words: str
) -> None:
    folder = write(**options)
    with pytest.raises(
        ValueError,
        match=rf"--checkpoint: .*adapter_config\.json has {words}, which is not read here; merge",
    ):
        export.check(folder)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_option_of_tomorrow": True}, "use_option_of_tomorrow"),
        ({"pattern_of_tomorrow": {"to_q": 1}}, "pattern_of_tomorrow"),
    ],
)
def test_entries_that_a_peft_could_write_are_refused_by_name(
    write: Callable[..., Path], entry: dict[str, Any], words: str
) -> None:
    folder = write()
    config = folder / "adapter_config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"size_of_tomorrow": 16, "off_tomorrow": False}))
    export.check(folder)
    config.write_text(json.dumps(plain | entry))
    with pytest.raises(ValueError, match=f"has {words}, which is not read here"):
        export.check(folder)
    config.write_text(json.dumps(plain | {"r": 0}))
    with pytest.raises(ValueError, match="has r = 0, not a number above 0"):
        export.check(folder)


def test_a_policy_that_cannot_be_read_is_named(write: Callable[..., Path]) -> None:
    folder = write()
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"--checkpoint: .*model\.safetensors is damaged"):
        export.check(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors is a git-lfs pointer"):
        export.check(folder)
    weights.write_bytes(content)
    for text, words in (("[]", "holds a list, not an object"), ("", "is no JSON")):
        config.write_text(text)
        with pytest.raises(ValueError, match=rf"--checkpoint: .*adapter_config\.json {words}"):
            export.check(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        export.check(folder)
    (folder / "transformer").mkdir()
    with pytest.raises(ValueError, match=r"peft/transformer holds no \.safetensors"):
        export.check(folder)
