"""The settings of a run: typed, checked and read-only.

Each is stated once, in `sections` or here: type, unit, range or choices, and meaning. From that
scripts/config_docs.py writes docs/configuration.md and the comments in config/base.py, where the
defaults are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from tp_grpo.settings.sections import (
    AdvantageSettings,
    CheckpointSettings,
    CreditSettings,
    EmaSettings,
    EvalSettings,
    LoraSettings,
    ModelSettings,
    PromptsSettings,
    RewardsSettings,
    RuntimeSettings,
    SampleSettings,
    TrackingSettings,
    TrainSettings,
)
from tp_grpo.settings.setting import Section, read, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """All settings of a run, by the names of its config: `settings.sample.steps`."""

    run_name: str = setting(
        "Folder below output_dir; the same name resumes the run.",
        required="it names the run's folder below output_dir",
    )
    output_dir: str = setting("Folder that holds the runs' folders.")
    seed: int = setting("Fixes all noise, prompt order and initial weights.", low=0, high=2**63 - 1)
    epochs: int = setting(
        "Epochs of sampling, scoring, credit and `train.updates_per_epoch` updates.",
        "epochs",
        low=1,
    )
    model: ModelSettings
    lora: LoraSettings
    prompts: PromptsSettings
    rewards: RewardsSettings
    sample: SampleSettings
    credit: CreditSettings
    advantage: AdvantageSettings
    train: TrainSettings
    ema: EmaSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    runtime: RuntimeSettings
    tracking: TrackingSettings

    @classmethod
    def read(cls, config: ConfigDict) -> Settings:
        """Raises ValueError that lists all mistakes of the config, one per line."""
        mistakes: list[str] = []
        settings: Settings | None = read(cls, config.to_dict(), mistakes)
        if mistakes or settings is None:
            raise ValueError("\n".join(mistakes))
        return settings

    def as_dict(self) -> dict[str, Any]:
        """The config they were read from, as JSON holds it; checkpoints store this."""
        config = ConfigDict(asdict(self), allow_dotted_keys=True)
        values: dict[str, Any] = json.loads(config.to_json_best_effort())
        return values
