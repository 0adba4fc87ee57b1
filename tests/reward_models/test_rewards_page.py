"""docs/rewards.md: its example runs as printed, and it has a section for every scorer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reward_models
from config import base, recipes
from reward_models.doctor import OK, check_of, examine
from reward_models.pairwise import pairs
from tp_grpo.rewards.reward_set import RewardSet
from tp_grpo.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def blocks(section: str) -> list[str]:
    """The Python blocks below a heading."""
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", body, re.DOTALL)


def test_the_example_scorer_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_models, "_FACTORIES", dict(reward_models._FACTORIES))
    monkeypatch.syspath_prepend(tmp_path)
    module, recipe, usage = blocks("Your own scorer in ten lines")
    (tmp_path / "my_rewards.py").write_text(module)
    names: dict[str, Any] = {"shapes_tiny": recipes.shapes_tiny}  # as in config/recipes.py
    exec(compile(recipe + usage, "docs/rewards.md", "exec"), names)
    config = base.get_config()
    config.run_name = "redness"
    with config.unlocked():
        names["redness"](config)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, ..., 0], images[1, ..., 2] = 255, 255
    assert names["scorer"](images, ["", ""], [{}, {}]).score.tolist() == [2, -1]
    assert examine("redness", "my_rewards:Redness", {}).state == OK
    scorers = dict(Settings.read(config).rewards.scorers)
    assert scorers.pop("shapes")["weight"] == 0
    rewards = RewardSet(scorers).score(images, ["", ""], [{}, {}])
    assert rewards.total.tolist() == [2, -1]
    assert rewards.extras["my_rewards:Redness/red"].tolist() == [1, 0]


def test_the_example_has_ten_lines() -> None:
    module = blocks("Your own scorer in ten lines")[0]
    code = [line for line in module.splitlines() if line.strip() and '"""' not in line]
    assert len(code) <= 10


def test_the_example_of_a_judge_can_be_built() -> None:
    (example,) = blocks("judge")
    config = base.get_config()
    with config.unlocked():
        exec(compile(example, "docs/rewards.md", "exec"), {"c": config})
    options = config.rewards.scorers["judge"]
    judge: Any = reward_models.build("judge", **options)
    assert judge.question == options["question"]


def test_the_example_that_compares_images_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module,) = blocks("Scorers that compare images")
    (tmp_path / "my_groups.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 255, 51, 51)])
    rewards = RewardSet({"my_groups:Contrast": 1.0}).score(images, list("aabb"), [{}] * 4)
    assert rewards.total.tolist() == [-0.5, 0.5, 0, 0]


def test_the_example_of_a_pairwise_judge_can_be_built() -> None:
    (example,) = blocks("pairwise")
    config = base.get_config()
    with config.unlocked():
        exec(compile(example, "docs/rewards.md", "exec"), {"c": config})
    scorer: Any = reward_models.build("pairwise", **config.rewards.scorers["pairwise"])
    assert scorer.opponents == 6 and len(pairs(24, 6)) == 72 and len(pairs(24)) == 276


def test_every_scorer_is_in_the_table() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert all(
        any(re.search(rf"\b{name}\b", row) for row in table) for name in reward_models._FACTORIES
    )


def test_every_published_checkpoint_is_named() -> None:
    sources = [source for name in reward_models.names() for source in check_of(name).weights]
    assert len(sources) == 12
    for source in sources:
        assert source.repo in PAGE, source
        if len(source.files) == 1:
            assert source.files[0] in PAGE, source
