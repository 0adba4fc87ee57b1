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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tp_grpo.store import files
from tp_grpo.store.compare import changed_scores

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tp_grpo.store.checkpoint import Checkpoint


WAIT_S = 5  # for wandb's server
KINDS = ("train", "update", "eval")  # of the lines in metrics.jsonl


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


def records(path: Path) -> list[dict[str, Any]]:
    """The run's lines of a metrics.jsonl: kind, epoch, and what is a number or None.

    Lines of somebody's own, which stay there, are passed over.
    """
    lines = []
    for line in files.read_lines(path):
        numbers = {n: v for n, v in line.items() if v is None or isinstance(v, int | float)}
        if _is_ours(line) and numbers.keys() > {"epoch"}:
            lines.append({"kind": line["kind"], **numbers})
    return lines


def _is_ours(line: Mapping[str, Any]) -> bool:
    epoch = line.get("epoch")
    return line.get("kind") in KINDS and isinstance(epoch, int) and not isinstance(epoch, bool)


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """A file of ladders or of an evaluation, opened by safetensors.

    Raises ValueError for a damaged file, whether it or the reader notices.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); move it away") from error


def check(folder: Path, epoch: int) -> None:
    """What a run that resumes after `epoch` will read and write in its folder; -1: a new run.

    Raises ValueError for a damaged evaluation or ladder, and where a file cannot be written.
    """
    for name in ("metrics.jsonl", "config.yaml", "plan.txt", "report.html"):
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder where a file is written; move it away")
    metrics = folder / "metrics.jsonl"
    if metrics.exists() and not os.access(metrics, os.R_OK | os.W_OK):
        raise ValueError(f"{metrics} cannot be read and written; change its mode, or move it away")
    for path in (*by_epoch(folder / "ladders"), *by_epoch(folder / "evaluations")):
        if epoch_of(path) <= epoch:
            with reading(path) as file:
                json.loads(file.metadata()["prompts"])
                file.get_slice("images")


class Tracker:
    """Called by all ranks; the main process writes.

    Raises ValueError where wandb refuses the run.

    evaluation: all that the scores of an evaluation depend on, of `standing.settings`.
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
        evaluation: Mapping[str, Any] | None = None,
    ) -> None:
        self.evaluation = evaluation or {}
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

    def rewind(self, epoch: int, branches: bool = False) -> None:
        """Drop what was logged and kept after `epoch`: a resumed run writes it again.

        branches: it begins with another run's checkpoint. Dropped too are evaluations by other
        settings, not to be compared with the new ones, and that of `epoch`, maybe of other weights.
        """
        if not self.main:
            return
        for path in by_epoch(self.folder / "ladders"):
            if epoch_of(path) > epoch:
                path.unlink()
        for path in by_epoch(self.folder / "evaluations"):
            if epoch_of(path) > epoch or (
                branches and (epoch_of(path) == epoch or self._is_foreign(path))
            ):
                path.unlink()
        if self.metrics.is_file():
            lines = self.metrics.read_bytes().splitlines()
            kept = [line for line in lines if self._stays(line, epoch)]
            with files.whole(self.metrics) as draft:
                draft.write_bytes(b"".join(line + b"\n" for line in kept))

    def _is_foreign(self, path: Path) -> bool:
        """Whether an evaluation is by other settings, or by unknown ones, as older runs'."""
        with reading(path) as file:
            kept = file.metadata().get("settings")
            then = json.loads(kept) if kept else {}
        changed = changed_scores(then, self.evaluation)
        if changed:
            words = "\n".join(changed) if kept else "  they were not kept"
            print(f"{path} is removed: it was made with other settings:\n{words}", flush=True)
        return bool(changed)

    def _stays(self, text: bytes, epoch: int) -> bool:
        """A line of somebody's own stays; an evaluation without its file is repeated."""
        try:
            line = json.loads(text)
        except ValueError:
            return not text.startswith(b"{")  # one of ours that was cut short, or no JSON at all
        if not isinstance(line, dict) or not _is_ours(line):
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
        """Write the folder `kind`'s epoch-N.safetensors, with the prompts in its metadata.

        An evaluation's also has the settings that it depends on.
        """
        if self.main:
            # safetensors refuses tensors that share memory.
            copies = {name: value.clone().contiguous() for name, value in tensors.items()}
            notes = {"prompts": json.dumps(prompts)}
            if kind == "evaluations":
                notes["settings"] = json.dumps(self.evaluation)
            with files.whole(path_of(self.folder / kind, epoch)) as draft:
                save_file(copies, draft, notes)
