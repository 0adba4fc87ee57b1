"""What a run leaves behind: config, plan, metrics, ladders, evaluations, trackers' curves."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from tp_grpo.store import files

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tp_grpo.store.checkpoint import Checkpoint


WAIT_S = 5  # for wandb's server


def go_offline_without_login(trackers: Sequence[str]) -> None:
    """wandb without a login, or without its server, runs offline and never asks or waits.

    Raises ValueError for a variable of wandb's in the environment that it cannot use.
    """
    if "wandb" not in trackers:
        return
    _check_environment()
    if "WANDB_MODE" in os.environ:
        return
    login = os.environ.get("WANDB_API_KEY") or _in_netrc()
    if not login or not _answers(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")):
        os.environ["WANDB_MODE"] = "offline"


def _check_environment() -> None:
    try:
        import wandb
    except ImportError:  # accelerate refuses the tracker
        return
    for name, value in os.environ.items():
        if not name.startswith("WANDB_"):
            continue
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except (ValueError, wandb.errors.Error) as error:
            details = getattr(error, "errors", None)  # of pydantic, whose text has several lines
            reason = details()[0]["msg"] if callable(details) else str(error).partition("\n")[0]
            shown = "" if "KEY" in name or "TOKEN" in name else f" = {value!r}"
            message = f"the environment's {name}{shown} is nothing that wandb can use: {reason}"
            raise ValueError(message) from error


def _in_netrc() -> bool:
    """Whether ~/.netrc names wandb; a file that may not be read holds no login."""
    try:
        return b"wandb" in Path(os.path.expanduser("~/.netrc")).read_bytes()
    except OSError:
        return False


def _answers(url: str) -> bool:
    """Whether anything answers there within seconds, be it with an error."""
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):  # the last: it speaks no HTTP
        print(f"wandb: nothing answers at {url} within {WAIT_S} s", flush=True)
        return False


def path_of(folder: Path, epoch: int) -> Path:
    """Where a folder of ladders or evaluations keeps an epoch's."""
    return folder / f"epoch-{epoch}.safetensors"


def epoch_of(path: Path) -> int:
    """The inverse of `path_of`."""
    return int(path.stem.removeprefix("epoch-"))


def by_epoch(folder: Path) -> list[Path]:
    """The folder's epoch-N.safetensors, oldest first; other files, such as copies, are not ours."""
    ours = [p for p in folder.glob("*") if re.fullmatch(r"epoch-\d+\.safetensors", p.name)]
    return sorted(ours, key=epoch_of)


class Tracker:
    """Called by all ranks; the main process writes.

    Raises ValueError where wandb refuses the run.

    resumes: the checkpoint that the run resumes from. Its `tracker` is the run's id in the curves,
    which continue there; without one the run gets a new id. TensorBoard drops what it was sent
    about later epochs.
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
        # Not drawn from the global generators: their state belongs to the run.
        self.run_id = (resumes and resumes.tracker) or secrets.token_hex(4)
        if self.main:
            for name in ("ladders", "evaluations"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            with files.whole(folder / "config.yaml") as draft:
                draft.write_text(yaml.safe_dump(config), "utf-8")
            with files.whole(folder / "plan.txt") as draft:
                draft.write_text("".join(f"{name:<10}{text}\n" for name, text in plan), "utf-8")
        wandb = {"dir": str(folder), "name": folder.name, "id": self.run_id, "resume": "allow"}
        tensorboard = {"purge_step": resumes.epoch + 1} if resumes else {}
        plain = int | float | str | bool
        flat = {name: v if isinstance(v, plain) else str(v) for name, v in config.items()}
        init_kwargs = {"wandb": wandb, "tensorboard": tensorboard}
        try:
            accelerator.init_trackers(project, flat, init_kwargs=init_kwargs)
        except Exception as error:
            if not type(error).__module__.startswith("wandb."):
                raise
            reason = " ".join(str(error).split())
            message = f"wandb refuses the run: {reason}; WANDB_MODE=offline needs no server"
            raise ValueError(message) from error
        offline = os.environ.get("WANDB_MODE") == "offline"
        if self.main and offline and "wandb" in map(str, accelerator.log_with):
            runs = f"{folder}/wandb/offline-run-*"
            print(f"wandb is offline; to upload the run later: wandb sync {runs}", flush=True)

    def has_evaluation(self, epoch: int) -> bool:
        """Whether that epoch's evaluation is kept."""
        return path_of(self.folder / "evaluations", epoch).is_file()

    def rewind(self, epoch: int) -> None:
        """Drop what was logged and kept after `epoch`: a resumed run writes it again."""
        if not self.main:
            return
        if self.metrics.is_file():
            kept = [line for line in files.read_lines(self.metrics) if self._counts(line, epoch)]
            with files.whole(self.metrics) as draft:
                draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        for path in (*by_epoch(self.folder / "ladders"), *by_epoch(self.folder / "evaluations")):
            if epoch_of(path) > epoch:
                path.unlink()

    def _counts(self, line: Mapping[str, Any], epoch: int) -> bool:
        """A line of somebody's own stays; an evaluation without its file is repeated."""
        if not isinstance(line.get("epoch"), int):
            return True
        known = line.get("kind") != "eval" or self.has_evaluation(line["epoch"])
        return known and line["epoch"] <= epoch

    def log(self, kind: str, epoch: int, values: Mapping[str, float]) -> None:
        """A line `{"kind", "epoch", ...}` in metrics.jsonl, and the values to every tracker."""
        if self.main:
            self.write(kind, epoch, values)
            tagged = {f"{kind}/{name}": value for name, value in values.items()}
            self.accelerator.log(tagged, step=epoch)

    def write(self, kind: str, epoch: int, values: Mapping[str, float]) -> None:
        """Only the line: a tracker's steps are epochs."""
        if self.main:
            # JSON has no NaN, and not every reader is Python.
            finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
            files.append_line(self.metrics, {"kind": kind, "epoch": epoch, **finite})

    def save(
        self, kind: str, epoch: int, tensors: Mapping[str, Tensor], prompts: list[str]
    ) -> None:
        """Write the folder `kind`'s epoch-N.safetensors, with the prompts in its metadata."""
        if self.main:
            # safetensors refuses tensors that share memory.
            copies = {name: value.clone().contiguous() for name, value in tensors.items()}
            with files.whole(path_of(self.folder / kind, epoch)) as draft:
                save_file(copies, draft, {"prompts": json.dumps(prompts)})
