"""A trained policy on its base model again, to look at it and to measure it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tp_grpo import models
from tp_grpo.models import export, families, pretrained
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.settings import ModelSettings
from tp_grpo.store.checkpoint import ADAPTER, Checkpoints
from tp_grpo.store.files import expanded, sha256


def find(path: str) -> Path | None:
    """The exported policy in a run (its newest), a checkpoint `epoch-N`, or its own folder.

    None, the base model, for an empty path. Raises ValueError when none of them holds one.
    """
    if not path:
        return None
    folder = expanded(path)
    # A finished run that was resumed has checkpoints newer than its adapter.
    newest = Checkpoints(folder / "checkpoints", 1).epochs()[-1:]
    names = [f"checkpoints/epoch-{epoch}/{ADAPTER}" for epoch in newest]
    for candidate in (folder, *(folder / name for name in (*names, ADAPTER))):
        if (candidate / export.PEFT_WEIGHTS).is_file() or (candidate / "transformer").is_dir():
            return candidate
    raise ValueError(
        f"--checkpoint {path}: no trained policy; give a run's folder, one of its "
        f"checkpoints/epoch-N, or a folder with {export.PEFT_WEIGHTS} or transformer/"
    )


def digest(folder: Path) -> str:
    """A hash of the policy's weights."""
    return "-".join(sha256(path) for path in sorted(folder.rglob("*.safetensors")))


class PolicyOnBase:
    """A backbone with a trained policy, or the base model alone."""

    def __init__(self, model: ModelSettings, runtime: Runtime, folder: Path | None) -> None:
        """Raises ValueError as `models.load` and, before any weights load, as `export.load` do."""
        if folder:
            export.check(folder)
            pipeline = families.adapter(model.type).pipeline_class
            pretrained.check_file(model.path, pipeline)
            configs = pretrained.read_configs(model.path, model.revision, pipeline.__name__)
            export.check_base(folder, configs["transformer"])
        self.backbone = models.load(model, runtime.device)
        self.policy = export.load(self.backbone.transformer, folder) if folder else None
        self.backbone.transformer = runtime.accelerator.prepare_model(
            self.backbone.transformer, evaluation_mode=True
        )

    def base(self) -> AbstractContextManager[None]:
        """A context in which the backbone is the base model."""
        return self.policy.reference() if self.policy else nullcontext()
