"""A reward server is killed during a run and restarted: the run waits, and loses no score."""

from __future__ import annotations

import numpy as np

from tests.reward_models.processes import ServerProcess
from tp_grpo.rewards.reward_set import RewardSet

SLOW = "tests.scorers:Slow"


def test_a_server_killed_over_a_batch_and_started_again_loses_no_score() -> None:
    images = (
        np.arange(48, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    )
    server = ServerProcess({SLOW: {}})
    rewards = RewardSet({SLOW: {"weight": 1.0, "remote": server.url, "batch_size": 4}})
    try:
        rewards.check_prompts(["a"], [{}])
        batches = [images[i : i + 8] for i in range(0, 48, 8)]
        pending = [rewards.submit(batch, ["a"] * 8, [{}] * 8) for batch in batches]
        first = pending[0].result(timeout=60)
        assert not pending[-1].done()
        server.stop()
        server = ServerProcess({SLOW: {}}, port=server.port)
        totals = [first.total, *(future.result(timeout=120).total for future in pending[1:])]
        rewards.settle()
    finally:
        rewards.close()
        server.stop()
    np.testing.assert_allclose(np.concatenate(totals), np.arange(48) / 255, rtol=1e-6)
    assert rewards.check_failed({SLOW: totals[-1]}, 0.0) == 0
