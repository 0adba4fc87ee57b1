"""Groups whose samples have one image each: fans of shared states, and images sorted by reward."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from config import nft, shared_state
from tests.report_runs import CONFIG, FORK, make, shared, train_line
from tp_grpo import report
from tp_grpo.report import charts, data, figures
from tp_grpo.trainer import Trainer


def smoke(config: ConfigDict, folder: Path) -> Path:
    """The page of a run of seconds."""
    config.output_dir, config.epochs = str(folder), 1
    return Trainer(config).run()


def test_the_mean_of_a_group_is_the_value_of_its_state(tmp_path: Path) -> None:
    first, second = report.trajectories(shared(tmp_path / "run"))
    fork = first["fork"]
    assert (fork["step"], fork["sigma"], fork["spread"], fork["count"]) == (2, 0.625, 0.125, 3)
    assert fork["value"] == pytest.approx(1.75 / 3)
    assert fork["std"] == pytest.approx(math.sqrt((0.25**2 + 1 + 0.5**2) / 3 - (1.75 / 3) ** 2))
    assert second["fork"]["step"] == 0
    assert second["fork"]["y"] == pytest.approx(87.5 - 75 * 0.125 / 0.5)


def test_the_highest_reward_is_first_and_the_unknown_last(tmp_path: Path) -> None:
    first = report.trajectories(shared(tmp_path / "run"))[0]
    assert first["single"]
    assert [row["member"] for row in first["rows"]] == [1, 3, 0, 2]


def test_a_fan_says_fork_value_spread_rewards_and_advantages(tmp_path: Path) -> None:
    run = shared(tmp_path / "run")
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert "Forks at step 2, sigma 0.62. Value of the state 0.583, mean of 3 rewards" in html
    assert "their std 0.312, the step’s running spread 0.125." in html
    assert 'alt="Image 2, reward 1.00, advantage +1.50"' in html
    assert "around the value 0.583 of the state: 1.00, 0.50, 0.25, unknown" in html
    assert html.count("<polyline") == 8, "one line a candidate"
    assert "sde, noise 0.7, one step of 2–3 of 4" in html
    assert "Trajectories" not in html.split("<script")[0]


def test_a_file_that_knows_the_fork_step_alone_opens(tmp_path: Path) -> None:
    run = shared(tmp_path / "run", {"fork": FORK["fork"]})
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert "Forks at step 2. Value of the state" in html
    assert "rewards; their std 0.312.</p>" in html


def test_what_shows_nothing_of_trajectories_is_left_out_for_noised_images(tmp_path: Path) -> None:
    html = smoke(nft.get_config("shapes_smoke"), tmp_path).read_text().split("<script")[0]
    assert "<h3>Images of a prompt</h3>" in html
    assert "none: ODE of 4 steps" in html
    assert "<td>nft<br>terminal</td>" in html
    for absent in ("<h3>Trajectories", "turning point", "<h3>Shared states", 'class="ladder"'):
        assert absent not in html, absent
    assert html.count('alt="Image ') == 2 * 4


def test_a_shared_state_run_keeps_what_the_fan_shows(tmp_path: Path) -> None:
    page = smoke(shared_state.get_config("shapes_smoke"), tmp_path)
    kept, _ = data.tensors(page.parent / "ladders" / "epoch-1.safetensors")
    metrics = data.read(page.parent).train
    assert kept["fork"].shape == kept["fork_sigma"].shape == kept["fork_spread"].shape == (16,)
    assert ((kept["fork"] == 0) == (kept["fork_sigma"] == 1)).all(), "step 0 leaves pure noise"
    for step in kept["fork"].unique().tolist():
        spread = kept["fork_spread"][kept["fork"] == step]
        assert spread.tolist() == pytest.approx([metrics[f"spread_{step}"][0]] * len(spread))
        share = (kept["fork"] == step).float().mean().item()
        assert metrics[f"fork_{step}"] == [share]
    html = page.read_text().split("<script")[0]
    assert html.count('class="fan"') == 2
    assert "running spread 0." in html


def test_forks_and_the_trust_region_have_figures(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=0)
    line = train_line(1) | {"spread_10": 0.2, "spread_2": 0.1, "fork": 6.0, "moved": 0.01}
    line |= {"fork_10": 0.5, "fork_2": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line))
    drawn = {chart.title: chart.keys for chart in charts.charts([data.read(run)])}
    assert drawn["Running spread of rewards, by fork step"] == ("spread_2", "spread_10")
    assert drawn["Share of groups, by fork step"] == ("fork_2", "fork_10"), "equal, but two steps"
    assert drawn["Distance from the policy that sampled"] == ("moved",)
    assert drawn["Mean step at which groups fork"] == ("fork",)


def test_the_png_of_such_a_group_is_its_images(tmp_path: Path) -> None:
    saved = figures.save([shared(tmp_path / "run")], tmp_path / "png")
    assert [path.stem for path in saved if "run" in path.stem] == [
        "turning-points-run",
        "images-run",
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "sde, noise 0.7, steps 2–3 of 4"),
        ({"window": "random"}, "sde, noise 0.7, 2 of 4 steps in a random window"),
    ],
)
def test_what_is_random_is_said(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    run = make(tmp_path / "run", epochs=1, sample=CONFIG["sample"] | changes)
    report.write(run, run / "report.html")
    assert f"<td>{words}</td>" in (run / "report.html").read_text()
    assert "<td>grpo<br>turning_point</td>" in (run / "report.html").read_text()
