"""Who has fallen silent is named by one rank of each machine, without any collective that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from torch import distributed

from tp_grpo.ranks import peers
from tp_grpo.ranks.peers import Peers

NAMES = [
    "rank 0 on machine 0 (first)",
    "rank 1 on machine 1 (second)",
    "rank 2 on machine 1 (second)",
]
BEAT_S = 0.05


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(peers, "BEAT_S", BEAT_S)
    yield
    peers.leave()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Peers]:
    """A rank; only rank 0 watches."""

    def join(rank: int, store: distributed.Store) -> Peers:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        return Peers(rank, NAMES, 30, store)

    return join


def printed(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """What was printed until those words were."""
    output, deadline = "", time.monotonic() + 20
    while words not in output:
        assert time.monotonic() < deadline, output
        time.sleep(BEAT_S)
        output += capsys.readouterr().err
    return output


def nothing(capsys: pytest.CaptureFixture[str]) -> bool:
    time.sleep(4 * (peers.PATIENCE + 1) * BEAT_S)
    return not capsys.readouterr().err


def test_a_rank_that_falls_silent_is_named_once_and_again_when_it_is_back(
    joined: Callable[..., Peers], capsys: pytest.CaptureFixture[str]
) -> None:
    store = distributed.HashStore()
    ranks = [joined(rank, store) for rank in range(3)]
    assert nothing(capsys)
    ranks[1]._stopped.set()
    assert printed(capsys, "machine or network").count(NAMES[1]) == 1
    assert nothing(capsys)
    again = printed(capsys, "answers again") if joined(1, store) else ""
    assert f"warning: {NAMES[1]} answers again" in again
    assert NAMES[2] not in again


def test_a_rank_that_leaves_as_all_do_is_not_missed(
    joined: Callable[..., Peers], capsys: pytest.CaptureFixture[str]
) -> None:
    store = distributed.HashStore()
    ranks = [joined(rank, store) for rank in range(3)]
    ranks[1].close()
    ranks[2].close()
    assert nothing(capsys)


def test_a_store_that_is_gone_is_the_loss_of_machine_0(
    joined: Callable[..., Peers], capsys: pytest.CaptureFixture[str]
) -> None:
    class Store(distributed.HashStore):  # type: ignore[misc]
        gone = False

        def add(self, key: str, amount: int) -> int:
            if self.gone:
                raise RuntimeError("Connection reset by peer")
            return int(super().add(key, amount))

    store = Store()
    for rank in range(3):
        joined(rank, store)
    store.gone = True
    assert f"and with it {NAMES[0]}: that machine is gone" in printed(
        capsys, "store of machine 0 does not answer"
    )
