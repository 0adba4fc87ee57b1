"""The adapter_config.json of peft: what it says of a LoRA's scale, and what is not read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig

from tp_grpo.models import checkpoint_files

CONFIG = "adapter_config.json"
# These say which modules a LoRA adapts (its tensors say it too), how it began or how it was
# trained; they change nothing of what its tensors mean. Whatever else is set is refused.
NEUTRAL = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "r", "lora_alpha", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "ensure_weight_tying"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    "qalora_group_size",
)
# The other beginnings move a part of the base weights into the LoRA.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapter(NamedTuple):
    """Its update of a weight is scale * B A, where A has `rank` rows."""

    rank: int
    scale: float


def read(file: Path, field: str) -> Adapter:
    """The adapter by its adapter_config.json; `field` is the setting that names it.

    Raises ValueError for a file that cannot be read, and for each option that is not honoured.
    """
    values = checkpoint_files.read_json(file, field)
    if wrong := _refused(values):
        raise ValueError(
            f"{field}: {file} has {', '.join(wrong)}, which is not read here; merge that adapter "
            "with peft (merge_and_unload), save the transformer, and name that model instead"
        )
    rank, alpha = values.get("r", LoraConfig.r), values.get("lora_alpha", LoraConfig.lora_alpha)
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{field}: {file} has {name} = {value!r}, not a number above 0")
    return Adapter(rank, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))


def _refused(values: dict[str, Any]) -> list[str]:
    """What of a config is not honoured here, in words."""
    names = []
    if (kind := values.get("peft_type", "LORA")) != "LORA":
        names.append(f"peft_type = {kind!r}")
    if (begin := values.get("init_lora_weights", True)) not in BEGINNINGS:
        names.append(f"init_lora_weights = {begin!r}")
    if values.get("bias", "none") != "none":
        names.append(f"bias = {values['bias']!r}")
    for name in sorted(values.keys() - {*NEUTRAL, "bias"}):
        # A version of peft that is newer may write numbers and words of its own as defaults.
        known, value = name in LoraConfig.__dataclass_fields__, values[name]
        if value and (known or value is True or isinstance(value, dict | list)):
            names.append(name)
    return names
