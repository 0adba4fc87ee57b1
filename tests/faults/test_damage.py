"""Any file of a run's newest checkpoint, harmed in any way: it is noticed, and the run goes on from the one before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import runs
from tp_grpo.store.checkpoint import META, STATE, WEIGHTS, Checkpoints, load


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


Harm = Callable[[bytes, random.Random], bytes]


@pytest.mark.parametrize("harm", [truncated, flipped, emptied])
def test_harm_to_any_file_is_noticed_and_the_checkpoint_before_is_used(
    harm: Harm, tmp_path: Path, undisturbed: Path, moments: int
) -> None:
    print(f"the harm: --moments={moments}")
    draw = random.Random(moments)
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    newest = tmp_path / "checkpoints" / "epoch-3"
    paths = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(newest)) for path in paths}
    assert names > {
        WEIGHTS,
        STATE,
        META,
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/README.md",
    }
    for path in paths:
        if path.name == META and harm is flipped:
            continue  # 1e-5 and 1E-5 are the same; see below
        content = path.read_bytes()
        path.write_bytes(harm(content, draw))
        with pytest.warns(
            UserWarning, match=rf"epoch-3: .*{path.name}.*; trying the one before it"
        ):
            found = Checkpoints(tmp_path / "checkpoints", 100).newest()
        assert found and found.epoch == 2, path
        path.write_bytes(content)
    assert load(newest).epoch == 3


def test_any_bit_of_the_seal_s_file_counts_or_changes_nothing(
    tmp_path: Path, undisturbed: Path, moments: int
) -> None:
    """The one file that no hash stands for: JSON with a seal of its own."""
    print(f"the bits: --moments={moments}")
    draw = random.Random(moments)
    shutil.copytree(undisturbed / "checkpoints" / "epoch-3", tmp_path / "epoch-3")
    whole = load(tmp_path / "epoch-3")
    meta = tmp_path / "epoch-3" / META
    content = meta.read_bytes()
    noticed = 0
    for _ in range(200):
        meta.write_bytes(flipped(content, draw))
        try:
            found = load(tmp_path / "epoch-3")
        except ValueError:
            noticed += 1
        else:
            assert (found.epoch, found.config, found.scores) == (
                whole.epoch,
                whole.config,
                whole.scores,
            )
    assert noticed > 190


def test_a_run_with_a_torn_checkpoint_says_so_and_ends_as_if_left_alone(
    tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    torn = tmp_path / "run" / "checkpoints" / "epoch-3" / STATE
    torn.write_bytes(torn.read_bytes()[:1000])
    output = runs.finish(tmp_path, "run")
    assert f"epoch-3: {STATE} is damaged" in output and "trying the one before it" in output
    assert "resuming from epoch 2" in output
    runs.assert_same_weights(tmp_path / "run", undisturbed)
