"""Prompt files as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tp_grpo.data.sets import files


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    kept = tmp_path / "train.txt" / "kept"
    kept.parent.mkdir()
    kept.touch()
    sets = {tmp_path / "train.txt": ["a cat"], tmp_path / "test.txt": ["a dog"]}
    with pytest.raises(ValueError, match=r"train\.txt: a folder in the place of a file; --out"):
        files.write(sets, force=True)
    assert kept.is_file() and not (tmp_path / "test.txt").exists()
