"""The settings of a run: typed, checked and read-only.

Each is stated once, in `sections`, `learning` or here: type, unit, range or choices, and meaning.
From that scripts/config_docs.py writes docs/configuration.md and the comments in config/base.py,
where the defaults are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.settings import combinations
from tp_grpo.settings.learning import (
    AdvantageSettings,
    CreditSettings,
    ObjectiveSettings,
    SampleSettings,
    TrainSettings,
)
from tp_grpo.settings.sections import (
    CheckpointSettings,
    EmaSettings,
    EvalSettings,
    LoraSettings,
    ModelSettings,
    PromptsSettings,
    RewardsSettings,
    RuntimeSettings,
    TrackingSettings,
)
from tp_grpo.settings.setting import Section, read, setting


def points_of(objective: str, groups: str) -> str:
    """See `Settings.points`."""
    return "noised" if OBJECTIVES[objective].noised else groups


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """All settings of a run, by the names of its config: `settings.sample.steps`."""

    run_name: str = setting(
        "Folder below output_dir; the same name resumes the run.",
        required="it names the run's folder below output_dir",
    )
    output_dir: str = setting("Folder that holds the runs' folders.", path=True)
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
    objective: ObjectiveSettings
    train: TrainSettings
    ema: EmaSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    runtime: RuntimeSettings
    tracking: TrackingSettings

    @property
    def group_sizes(self) -> dict[str, int]:
        """Images of a prompt in training and in evaluations, by setting."""
        return {"sample.group_size": self.sample.group_size, "eval.members": self.eval.members}

    @classmethod
    def read(cls, config: ConfigDict) -> Settings:
        """Raises ValueError that lists all mistakes of the config, one per line."""
        mistakes: list[str] = []
        settings: Settings | None = read(cls, config.to_dict(), mistakes)
        if mistakes or settings is None:
            raise ValueError("\n".join(mistakes))
        return settings

    @property
    def points(self) -> str:
        """Where the loss looks at the velocity: noised, shared_state or trajectories."""
        return points_of(self.objective.name, self.sample.groups)

    @property
    def step_weight(self) -> str:
        """`train.step_weight`; uniform where the objective has no use for it."""
        weight = self.train.step_weight
        return weight if weight in OBJECTIVES[self.objective.name].step_weights else "uniform"

    def mistakes(self) -> Iterator[str]:
        name = self.run_name
        if "/" in name or name.startswith("~") or name in (".", ".."):
            yield (
                f"run_name = {name!r} must be the name of one folder, without / and ~; "
                "output_dir says where it lies"
            )
        yield from combinations.mistakes(self)

    def cautions(self, *, classifier_free: bool) -> Iterator[str]:
        """What works, but not as the method's source or the settings say.

        classifier_free: whether that is the model's kind of guidance.
        """
        yield from combinations.unpublished(self, classifier_free=classifier_free)
        for words in combinations.without_effect(self):
            yield f"{words}; it has no effect"

    def as_dict(self) -> dict[str, Any]:
        """The config they were read from, as JSON holds it; checkpoints store this."""
        config = ConfigDict(asdict(self), allow_dotted_keys=True)
        values: dict[str, Any] = json.loads(config.to_json_best_effort())
        return values
