"""scripts/generate.py: images of the base model and of the trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import printed


def test_generate_draws_base_and_tuned_from_the_same_noise(trained: Path, tmp_path: Path) -> None:
    common = (f"--checkpoint={trained}", "--prompts=a red circle", "--members=2", "--grid")
    printed("generate", *common, f"--out={tmp_path / 'a'}", "--seed=7")
    one = "--config.eval.batch_size=1"
    printed("generate", *common, f"--out={tmp_path / 'b'}", "--seed=7", one)
    printed("generate", *common, f"--out={tmp_path / 'c'}", "--seed=8")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"0000-{m}-{k}.png" for m in (0, 1) for k in ("base", "tuned")] + ["grid.png"]

    def pixels(folder: str, name: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / folder / name)).astype(int)

    assert (abs(pixels("a", names[0]) - pixels("a", names[1])) > 10).any(), "tuned is not the base"
    for name in names[:4]:
        assert abs(pixels("a", name) - pixels("b", name)).max() <= 1
    assert (abs(pixels("a", names[0]) - pixels("c", names[0])) > 10).any()
    assert pixels("a", "grid.png").shape == (48 + 4, 4 * 50 + 2, 3)


@pytest.mark.parametrize(
    "prompts, count", [("a red circle " * 30, 1), ("tests.scorers:two_prompts", 2)]
)
def test_generate_takes_any_text_and_any_source(tmp_path: Path, prompts: str, count: int) -> None:
    printed("generate", f"--prompts={prompts}", f"--out={tmp_path}")
    assert len(list(tmp_path.iterdir())) == count
