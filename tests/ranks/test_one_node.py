"""What one node alone lacks stops all with its reason, not with a broken connection."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import tp_grpo.models
from tests.faults import runs


def without_prompts() -> None:
    sys.argv.append("--config.prompts.train=not/here.txt")


def without_weights() -> None:
    def load(*_: Any) -> None:
        raise ValueError("model.path = 'not/here': there is no such folder")

    tp_grpo.models.load = load  # type: ignore[assignment]


def without_package() -> None:
    def load(*_: Any) -> None:
        raise ImportError("no such package")

    tp_grpo.models.load = load  # type: ignore[assignment]


def start(missing: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of two ranks, the second of which lacks something."""
    spoil = {1: f"tests.ranks.test_one_node.without_{missing}"}
    processes = runs.start(folder, "run", {"sample.batch_size": 1}, ranks=2, spoil=spoil)
    return [process.wait() for process in processes]


@pytest.mark.parametrize(
    "missing, words", [("prompts", "not/here.txt"), ("weights", "there is no such folder")]
)
def test_a_file_that_one_node_lacks_stops_all_with_its_reason(
    missing: str, words: str, tmp_path: Path
) -> None:
    for code, output in start(missing, tmp_path):
        assert code == 2, output
        assert "error: rank 1 on machine 0 (" in output
        assert words in output
        assert "Traceback" not in output, output


def test_an_error_that_is_ours_keeps_its_traceback_on_its_rank_alone(tmp_path: Path) -> None:
    (code, output), (other_code, other) = start("package", tmp_path)
    assert code == 2, output
    assert "error: rank 1 on machine 0 (" in output
    assert "ImportError: no such package" in output
    assert "Traceback" not in output
    assert other_code == 1, other
    assert "Traceback" in other
    assert "ImportError: no such package" in other


def test_a_rank_that_is_lost_while_it_loads_is_named(tmp_path: Path) -> None:
    first, second = runs.start(tmp_path, "run", {"sample.batch_size": 1}, at=("load", 1), ranks=2)
    assert second.reached()
    os.kill(second.pid, signal.SIGKILL)
    code, output = first.wait()
    assert code == 4, output
    assert "error: rank 1 on machine 0 (" in output
    assert "no longer answers" in output
    assert "Traceback" not in output, output
