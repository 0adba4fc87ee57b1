"""What a run leaves behind: config, plan, metrics, ladders with thumbnails, evaluations; and the config's trackers."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from tp_grpo.store import files
from tp_grpo.store.checkpoint import Checkpoint


def go_offline_without_login(trackers: Sequence[str]) -> None:
    """wandb without a login runs offline and never asks."""
    netrc = Path.home() / ".netrc"
    login = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())
    if "wandb" in trackers and not login:
        os.environ.setdefault("WANDB_MODE", "offline")


class Tracker:
    """Writes from the main process alone; the others call it and nothing happens.

    resumes: the checkpoint that the run goes on from. Trackers know the run by `run_id`, which it holds, and go on in
    the same curves; without one the run has a new id. TensorBoard forgets what it was told of later epochs.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        config: Mapping[str, Any],
        plan: Sequence[tuple[str, str]],
        project: str,
        resumes: Checkpoint | None = None,
    ) -> None:
        self.accelerator, self.folder, self.main = accelerator, folder, accelerator.is_main_process
        self.metrics = folder / "metrics.jsonl"
        # Never from the global generators: they are the run's.
        self.run_id = (resumes and resumes.tracker) or secrets.token_hex(4)
        if self.main:
            (folder / "ladders").mkdir(parents=True, exist_ok=True)
            (folder / "evaluations").mkdir(exist_ok=True)
            with files.whole(folder / "config.yaml") as draft:
                draft.write_text(yaml.safe_dump(config))
            with files.whole(folder / "plan.txt") as draft:
                draft.write_text("".join(f"{name:<10}{text}\n" for name, text in plan))
        settings = {
            "wandb": {
                "dir": str(folder),
                "name": folder.name,
                "id": self.run_id,
                "resume": "allow",
            },
            "tensorboard": {"purge_step": resumes.epoch + 1} if resumes else {},
        }
        flat = {
            name: v if isinstance(v, int | float | str | bool) else str(v)
            for name, v in config.items()
        }
        accelerator.init_trackers(project, flat, init_kwargs=settings)
        if (
            self.main
            and os.environ.get("WANDB_MODE") == "offline"
            and "wandb" in map(str, accelerator.log_with)
        ):
            print(
                f"wandb is offline; to upload the run later: wandb sync {folder}/wandb/offline-run-*",
                flush=True,
            )

    def has_evaluation(self, epoch: int) -> bool:
        """Whether `evaluations/` holds that epoch's."""
        return (self.folder / "evaluations" / f"epoch-{epoch}.safetensors").is_file()

    def rewind(self, epoch: int) -> None:
        """Forget what was logged and kept after `epoch`: a resumed run says it again."""
        if not self.main:
            return
        if self.metrics.is_file():
            kept = [line for line in files.read_lines(self.metrics) if self._counts(line, epoch)]
            with files.whole(self.metrics) as draft:
                draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        for path in self.folder.glob("*/epoch-*.safetensors"):
            if int(path.stem.removeprefix("epoch-")) > epoch:
                path.unlink()

    def _counts(self, line: Mapping[str, Any], epoch: int) -> bool:
        """An evaluation counts when its file is there: without, it is made again."""
        return line["epoch"] <= epoch and (
            line["kind"] != "eval" or self.has_evaluation(line["epoch"])
        )

    def log(self, kind: str, epoch: int, values: Mapping[str, float]) -> None:
        """A line `{"kind", "epoch", ...}` in metrics.jsonl, and the values to every tracker."""
        if not self.main:
            return
        self.write(kind, epoch, values)
        self.accelerator.log(
            {f"{kind}/{name}": value for name, value in values.items()}, step=epoch
        )

    def write(self, kind: str, epoch: int, values: Mapping[str, float]) -> None:
        """The line alone: a tracker's steps are epochs."""
        if self.main:
            # JSON has no NaN, and a reader of the line need not be Python.
            known = {
                name: value if math.isfinite(value) else None for name, value in values.items()
            }
            files.append_line(self.metrics, {"kind": kind, "epoch": epoch, **known})

    def save_ladders(self, epoch: int, tensors: Mapping[str, Tensor], prompts: list[str]) -> None:
        """`ladders/epoch-N.safetensors`; prompts travel in its metadata."""
        self._save("ladders", epoch, tensors, prompts)

    def save_evaluation(
        self, epoch: int, tensors: Mapping[str, Tensor], prompts: list[str]
    ) -> None:
        """`evaluations/epoch-N.safetensors`: every image's scores in the same order each time, and some images."""
        self._save("evaluations", epoch, tensors, prompts)

    def _save(
        self, kind: str, epoch: int, tensors: Mapping[str, Tensor], prompts: list[str]
    ) -> None:
        if self.main:
            owned = {
                name: value.clone().contiguous() for name, value in tensors.items()
            }  # safetensors shares nothing
            with files.whole(self.folder / kind / f"epoch-{epoch}.safetensors") as draft:
                save_file(owned, draft, {"prompts": json.dumps(prompts)})
