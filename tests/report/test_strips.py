"""What filmstrips say of their images: how many stochastic steps came before each."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from tests.report_runs import make, save_ladders
from tp_grpo import report
from tp_grpo.report import data
from tp_grpo.trainer import Trainer

ROOT = Path(__file__).parents[2]


def words(folder: Path) -> list[str]:
    """Of the images of the first trajectory."""
    return [frame["words"] for frame in report.trajectories(folder)[0]["rows"][0]["frames"]]


def test_a_run_that_completes_some_states_says_which(smoke: Callable[..., ConfigDict]) -> None:
    config = smoke(run_name="partial", epochs=1, sample__steps=5, sample__window_size=4)
    config.sample.update(
        branch_from=1, branch_every=2
    )  # states 1 and 3, and the trajectory's own, 4
    page = Trainer(config).run()
    after = [
        f"Completion after {count}"
        for count in ("1 stochastic step", "3 stochastic steps", "4 stochastic steps")
    ]
    assert words(page.parent) == after
    html = page.read_text()
    assert "ODE alone" not in html
    assert html.count("<br>after 3</figcaption>") == 2 * 4
    assert "reached by the stochastic steps named" in html
    assert "image k is" not in html


@pytest.mark.parametrize(
    "states, after",
    [
        ([0, 1, 2], ["by the ODE alone", "after 1 stochastic step", "after 2 stochastic steps"]),
        (None, ["by the ODE alone", "1", "2"]),
    ],
)
def test_a_whole_ladder_begins_with_the_ode_alone(
    tmp_path: Path, states: list[int] | None, after: list[str]
) -> None:
    run = make(tmp_path / "run", epochs=1)
    kept, _ = data.tensors(run / "ladders" / "epoch-1.safetensors")
    save_ladders(run, 1, kept | ({"states": torch.tensor(states)} if states else {}))
    assert words(run) == [f"Completion {each}" for each in after]
    report.write(run, run / "report.html")
    html = (run / "report.html").read_text()
    assert "image k is the clean image reached by k stochastic steps" in html
    assert "<br>after" not in html


def test_a_ladder_of_foot_and_end_shows_that_the_first_is_the_ode_alone(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epochs=1)
    kept, _ = data.tensors(run / "ladders" / "epoch-1.safetensors")
    kept |= {
        "ladder": kept["ladder"][:, [0, 2]],
        "images": kept["images"][:, [0, 2]],
        "states": torch.tensor([0, 2]),
    }
    save_ladders(run, 1, {name: value.contiguous() for name, value in kept.items()})
    assert words(run) == ["Completion by the ODE alone", "Completion after 2 stochastic steps"]
    report.write(run, run / "report.html")
    assert (run / "report.html").read_text().count("<br>ODE alone</figcaption>") == 3


def test_the_figure_of_a_ladder_needs_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, figure = make(tmp_path / "run", epochs=1), tmp_path / "ladder.png"
    kept, _ = data.tensors(run / "ladders" / "epoch-1.safetensors")
    save_ladders(
        run, 1, kept | {"states": torch.tensor([0, 1])}
    )  # fewer than there are trajectories
    monkeypatch.setattr(sys, "argv", ["ladder_figure.py", str(run), str(figure), "--row", "2"])
    runpy.run_path(str(ROOT / "scripts" / "ladder_figure.py"), run_name="__main__")
    assert Image.open(figure).convert("L").getextrema() == (0, 255)
    save_ladders(run, 1, kept | {"ladder": torch.ones(3, 2)})
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / "ladder_figure.py"), run_name="__main__")
    assert "the ladders have 2 rewards for 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "out, row, message",
    [
        ("ladder.png", "99", "--row 99: {}/run/ladders/epoch-1.safetensors has pictures of rows"),
        ("ladder.png", "-1", "--row -1: {}/run/ladders/epoch-1.safetensors has pictures of rows"),
        ("ladder.txt", "0", "Format 'txt' is not supported (supported formats: "),
        ("file/ladder.png", "0", "OUT: {}/file cannot be written"),
    ],
)
def test_the_figure_of_a_ladder_that_cannot_be_drawn(
    out: str,
    row: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "run", epochs=1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ladder_figure.py", "~/run", f"~/{out}", "--row", row])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / "scripts" / "ladder_figure.py"), run_name="__main__")
    assert ending.value.code == 2
    assert f"error: {message.format(tmp_path)}" in capsys.readouterr().err


def test_the_folder_of_a_ladders_figure_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, figure = make(tmp_path / "run", epochs=1), tmp_path / "a" / "b" / "ladder.png"
    monkeypatch.setattr(sys, "argv", ["ladder_figure.py", str(run), str(figure)])
    runpy.run_path(str(ROOT / "scripts" / "ladder_figure.py"), run_name="__main__")
    assert figure.is_file()
