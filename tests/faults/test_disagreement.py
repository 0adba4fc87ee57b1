"""A rank that differs from the others stops them all and is named; nothing of it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import runs
from tp_grpo.store.checkpoint import Checkpoints


@pytest.mark.parametrize(
    "what, difference, advice",
    [
        ("weights", "  rank 1 has weights of ", "seen after the updates of epoch 1"),
        (
            "prompts",
            "  rank 1 has as prompt ids [1, 0], where rank 0 has [",
            "the same prompt files",
        ),
        (
            "window",
            "  rank 1 has plan.window range(1, 3), where rank 0 has range(0, 2)",
            "the same version",
        ),
        (
            "config",
            "  rank 1 has config.train.learning_rate = 0.5, where rank 0 has ",
            "the same command",
        ),
    ],
)
def test_a_rank_that_differs_stops_both_and_is_named(
    what: str, difference: str, advice: str, tmp_path: Path
) -> None:
    spoil = {1: f"tests.faults.spoil.{what}"}
    processes = runs.start(tmp_path, "run", {"sample.batch_size": 1}, ranks=2, spoil=spoil)
    for code, output in [process.wait() for process in processes]:
        assert code == 3, output
        assert "error: the ranks disagree:" in output
        assert "Traceback" not in output, output
        assert difference in output
        assert advice in output
    assert Checkpoints(tmp_path / "run" / "checkpoints", 100).epochs() == []
