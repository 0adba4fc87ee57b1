"""Which exported policy a path means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tp_grpo.evaluate import policy_on_base
from tp_grpo.models import export


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    """A finished run that was resumed has an adapter of its first end."""
    for name in ("", "checkpoints/epoch-1", "checkpoints/epoch-12", "checkpoints/epoch-3"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "adapter" / export.PEFT_WEIGHTS).touch()
    assert policy_on_base.find(str(tmp_path)) == tmp_path / "checkpoints/epoch-12/adapter"
    third = tmp_path / "checkpoints/epoch-3"
    assert policy_on_base.find(str(third)) == third / "adapter"
    shutil.rmtree(tmp_path / "checkpoints")
    assert policy_on_base.find(str(tmp_path)) == tmp_path / "adapter"


def test_no_path_is_the_base_model_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert policy_on_base.find("") is None
    with pytest.raises(ValueError, match=r"--checkpoint .*/none: no trained policy"):
        policy_on_base.find(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"--checkpoint ~nobody-of-this-name/x: no trained"):
        policy_on_base.find("~nobody-of-this-name/x")
