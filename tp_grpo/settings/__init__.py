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

from tp_grpo.method.credit import needs_branches
from tp_grpo.method.objectives import OBJECTIVES, Objective
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
    objective: ObjectiveSettings
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

    @property
    def points(self) -> str:
        """Where the loss looks at the velocity: noised, shared_state or trajectories."""
        return points_of(self.objective.name, self.sample.groups)

    @property
    def _objective(self) -> Objective:
        return OBJECTIVES[self.objective.name]

    def mistakes(self) -> Iterator[str]:
        name, credit = self.objective.name, self.credit.name
        if self._objective.noised and self.sample.groups != "trajectories":
            yield (
                f"objective.name = {name!r} looks at clean images that are noised afresh, but "
                f"sample.groups = {self.sample.groups!r} samples next states of one state; set "
                "sample.groups = 'trajectories', or an objective of the states: matching, grpo, "
                "guard or dppo"
            )
        elif self.points != "trajectories" and needs_branches(credit):
            who = f"objective.name = {name!r}" if self._objective.noised else "shared_state"
            yield (
                f"credit.name = {credit!r} tells the steps of a trajectory apart, but with {who} "
                "an image has one score and no steps to compare; set credit.name = 'terminal'"
            )
        trained = self.train.guidance_scale
        if not self._objective.noised and trained not in (0, self.sample.guidance_scale):
            yield (
                f"train.guidance_scale = {trained:g}: {name} trains the velocity that sampled, "
                f"with sample.guidance_scale = {self.sample.guidance_scale:g}; set 0"
            )
        o = self.objective
        if o.old_ramp > 0 and o.old_max > 0 and not self._objective.noised:
            yield (
                f"objective.old_ramp = {o.old_ramp:g}: {name} compares the policy with what it "
                "was when it sampled, so that it must sample itself; set objective.old_ramp = 0, "
                "or an objective that noises clean images: nft, elbo_pg, awm or dgpo"
            )
        if self.sample.window != "fixed" and self.points == "shared_state":
            yield (
                f"sample.window = {self.sample.window!r} moves the window of trajectories, but "
                "shared_state groups fork anywhere in theirs; set sample.window = 'fixed', and "
                "sample.window_size to all steps to fork at"
            )
        rows, size = self.sample.batch_size, self.sample.group_size
        if self._objective.groups and rows % size:
            yield (
                f"sample.batch_size = {rows}: {name} compares the {size} images of a prompt "
                f"(sample.group_size), so that a batch must hold whole groups, as {size} and "
                f"{2 * size} do"
            )

    def cautions(self, *, classifier_free: bool) -> Iterator[str]:
        """What works, but not as the method's source has it; the model's kind of guidance."""
        scale = self.train.guidance_scale or self.sample.guidance_scale
        if self._objective.no_guidance and scale > 1 and classifier_free:
            yield (
                f"sample.guidance_scale = {scale:g}: {self.objective.name} was published without "
                "guidance (1). With it every evaluation is paid twice, and the loss compares a "
                "guided velocity with images that no single model makes; train.guidance_scale = 1 "
                "leaves it out of the updates"
            )

    def as_dict(self) -> dict[str, Any]:
        """The config they were read from, as JSON holds it; checkpoints store this."""
        config = ConfigDict(asdict(self), allow_dotted_keys=True)
        values: dict[str, Any] = json.loads(config.to_json_best_effort())
        return values
