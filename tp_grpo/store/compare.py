"""Two configs compared: which fields differ, and which may when a run resumes or branches off."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

CONTENT = " (content)"  # after a field that names a file: the digest of what it names

# What may change when a run resumes: its length, where it is kept and shown, when it stops, and
# what moves the numbers by rounding alone, since other GPUs need other batches.
FREE_FIELDS = (
    "epochs",
    "output_dir",
    "run_name",
    "checkpoint.*",
    "runtime.*",
    "tracking.*",
    "eval.every",
    "eval.images",
    "rewards.max_failed",
    "train.max_ratio_dev",
    "train.max_skipped",
    "*.batch_size",
    "model.decode_batch_size",
    "model.text_encoders",
    "model.embeddings_cache",
    "model.gradient_checkpointing",
    "sample.max_rows",
    "sample.store_on_cpu",
    "rewards.scorers.*.placement",
    "rewards.scorers.*.remote",
    "rewards.scorers.*.patience",
    # Where a scorer elsewhere is and how it is reached, as with `remote`.
    *(
        f"rewards.scorers.*.{option}"
        for option in (
            *("url", "concurrency", "timeout", "attempts", "api_key"),
            *("in_flight", "png", "workers"),
        )
    ),
)
# What a run that starts from another's checkpoint must keep: it gives weights and states meaning.
BRANCH_FIELDS = (
    *("model.type", "model.path", "model.revision", "model.adapter"),
    *(f"model.path{CONTENT}", f"model.adapter{CONTENT}"),
    *("lora.rank", "lora.alpha", "lora.targets", "ema.*", "train.optimizer"),
)
# Settings that a run may be older than: what it did without them. MEANINGLESS: nothing.
BEFORE = {
    "advantage.combine": "sum",
    "advantage.over": "step",
    "advantage.scale": 0.0,
    "lora.init": "",
    "model.adapter": "",
    "objective.name": "grpo",
    "sample.groups": "trajectories",
    "sample.window": "fixed",
    "train.guidance_scale": 0.0,
}
MEANINGLESS = ("objective.*", "sample.fork", "sample.window_stop", "sample.window_every")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """{field: "  field: A then, B now"} for the top-level fields that differ, in order of name.

    Values are compared as JSON stores them: a tuple equals the list that was saved of it.
    """
    now = json.loads(json.dumps(now))
    return {
        field: f"  {field}: {then.get(field)!r} then, {now.get(field)!r} now"
        for field in sorted(then.keys() | now.keys())
        if then.get(field) != now.get(field)
    }


def changed_scores(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The lines of `differences` for settings of an evaluation that its scores depend on."""
    changed = _changed(then, now)
    free = [name for name in FREE_FIELDS if name.startswith(("rewards.scorers.", "*."))]
    return [
        line
        for field, line in changed.items()
        if not any(fnmatchcase(f"rewards.{field}", name) for name in free)
    ]


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The `differences` of two configs, without other spellings and other paths of the same."""
    old, after = flatten(_with_weights(then)), flatten(_with_weights(now))
    completed = _completed(old, after)
    before, present = _normalised(completed), _normalised(after)
    # A line has the values as they were given.
    same = {field for field in before.keys() & present.keys() if before[field] == present[field]}
    return _by_content(completed, {f: (completed if f in same else after)[f] for f in after})


def _with_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, or the settings of an evaluation, with every scorer as options with a weight."""
    known = dict(config)
    if isinstance(rewards := known.get("rewards"), Mapping):
        known["rewards"] = _with_weights(rewards)
    if isinstance(scorers := known.get("scorers"), Mapping):
        known["scorers"] = {
            name: {"weight": 1.0, **(it if isinstance(it, Mapping) else {"weight": it})}
            for name, it in scorers.items()
        }
    return known


def _by_content(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """`differences`, where what a field names is compared by its content if that is known."""
    changed = differences(before, after)
    for field in [field for field in after if field.endswith(CONTENT)]:
        if field not in before:  # of a run from before this was kept
            changed.pop(field, None)
        elif before[field] == after[field]:  # the same under another path
            changed.pop(field.removesuffix(CONTENT), None)
    return changed


def check_same_run(
    then: Mapping[str, Any], now: Mapping[str, Any], where: Path, branches: bool = False
) -> None:
    """Raises ValueError, field by field, when a run would resume with other settings.

    branches: a new run begins with another's checkpoint, and only BRANCH_FIELDS must agree.
    """

    def matters(field: str) -> bool:
        names = BRANCH_FIELDS if branches else FREE_FIELDS
        return any(fnmatchcase(field, name) for name in names) == branches

    changed = _changed(then, now)
    lines = "\n".join(line for field, line in changed.items() if matters(field))
    if lines and branches:
        raise ValueError(
            f"the checkpoint {where} was made with other settings:\n{lines}\n"
            "A run that begins with its weights must keep these; the others may change."
        )
    if lines:
        raise ValueError(
            f"{where} holds a run with other settings:\n{lines}\nGive the new run its own name "
            "(--config.run_name=NAME), or set these back to resume the old one."
        )


def _normalised(flat: dict[str, Any]) -> dict[str, Any]:
    """The flat config with the scorers' paths in one spelling: absolute, as from this folder."""
    paths = ("*scorers.*.path", "*scorers.*_path")
    return {
        field: os.path.abspath(os.path.expanduser(value))
        if isinstance(value, str) and value and any(fnmatchcase(field, name) for name in paths)
        else value
        for field, value in flat.items()
    }


def _completed(then: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config `then` with the settings of `now` that it is older than."""
    younger = {
        field: BEFORE.get(field, value)
        for field, value in now.items()
        if field in BEFORE or any(fnmatchcase(field, name) for name in MEANINGLESS)
    }
    return younger | then


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.beta": ...}: a nested config by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and bool(value)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def same_folder(kept: str, path: str) -> bool:
    """Whether both name one folder; `kept` may be relative to a working directory of the past.

    Runs keep absolute paths today. A relative one, of an older run, is the end of the folder's.
    """
    if Path(kept).resolve() == Path(path).resolve():
        return True
    past = [part for part in Path(os.path.normpath(kept)).parts if part != ".."]
    ends = {
        tuple(place.parts[-len(past) :]) for place in (Path(path).absolute(), Path(path).resolve())
    }
    return len(past) > 1 and not Path(kept).is_absolute() and tuple(past) in ends
