"""The report's figures, on a run folder made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tp_grpo import report


def evaluation(folder: Path, epoch: int, exact: list[float], prompts: list[str] | None = None) -> None:
    (folder / "evaluations").mkdir(exist_ok=True)
    tensors = {
        "total": torch.tensor(exact),
        "shapes/exact": torch.tensor(exact),
        "images": torch.zeros(2, 4, 4, 3).byte(),
    }
    save_file(
        tensors,
        folder / "evaluations" / f"epoch-{epoch}.safetensors",
        {"prompts": json.dumps(prompts or ["p<1>", "p2", "p3"])},
    )


def test_the_change_is_paired_and_nan_left_out(tmp_path: Path) -> None:
    evaluation(tmp_path, 0, [0.0, 1.0, 0.5])
    evaluation(tmp_path, 2, [0.2, 0.4, 0.1])
    evaluation(tmp_path, 10, [1.0, 1.0, float("nan")])
    first = report.gains(tmp_path)[0]
    assert first["name"] == "shapes/exact" and first["n"] == 2
    assert (first["before"], first["after"], first["change"]) == (0.5, 1.0, 0.5)
    assert first["se"] == pytest.approx(0.5)
    assert first["epoch"] == 10


def test_the_page_is_whole_and_escapes_prompts(tmp_path: Path) -> None:
    evaluation(tmp_path, 0, [0.0, 1.0, 0.5])
    evaluation(tmp_path, 1, [0.2, 0.4, 0.1])
    sample = {"kind": "sde", "noise_level": 0.7, "window_start": 0, "window_size": 2, "steps": 4}
    sample |= {"groups_per_epoch": 1, "group_size": 2}
    (tmp_path / "config.json").write_text(json.dumps({"credit": {"name": "x"}, "sample": sample, "seed": 1}))
    lines = [{"kind": "train", "epoch": 1, "reward": 0.5, "seconds": 60.0}]
    lines += [{"kind": "eval", "epoch": e, "total": 0.1, "total_se": 0.01, "seconds": 6.0} for e in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "ladders").mkdir()
    kept = {"ladder": torch.tensor([[0.0, 0.3, 1.0], [1.0, 0.6, 0.2]]), "group_id": torch.tensor([7, 7])}
    kept |= {"images": torch.zeros(2, 3, 4, 4, 3).byte(), "turning": torch.tensor([[False, True], [True, False]])}
    kept |= {name: torch.tensor([[0.3, 0.7], [-0.8, -0.4]]) for name in ("increment", "reward", "advantage")}
    save_file(kept, tmp_path / "ladders" / "epoch-1.safetensors", {"prompts": json.dumps(["p<1>", "p<1>"])})
    report.write(tmp_path, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "p&lt;1&gt;" in html and "p<1>" not in html
    assert html.count('class="cell good"') == 2 and html.count('class="cell bad"') == 2  # one each in the legend
    assert "1.2 minutes" in html
    assert "after epoch 1" in html and "-0.267 ± 0.240" in html


def test_evaluations_of_other_prompts_are_not_compared(tmp_path: Path) -> None:
    evaluation(tmp_path, 0, [0.0, 1.0, 0.5])
    evaluation(tmp_path, 1, [0.0, 1.0, 0.5], ["p<1>", "p2", "another"])
    with pytest.raises(ValueError, match="different prompts"):
        report.gains(tmp_path)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        report.write(tmp_path, tmp_path / "report.html")
