"""The benchmarks: the yardstick computes the same and costs what it should; curves are right."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import credit
import curves
import naive
import speed

from config import recipes

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("steps, window, evaluations", [(10, 9, 64), (6, 5, 26)])
def test_the_yardstick_makes_the_public_implementations_evaluations(
    steps: int, window: int, evaluations: int
) -> None:
    calls: list[int] = []

    def velocity(x: Tensor, step: int) -> Tensor:
        calls.append(step)
        return -x

    x, noise = torch.ones(2, 3), torch.zeros(2, window, 3)
    sampled = naive.sample(velocity, x, torch.linspace(1, 0, steps + 1), noise, noise_level=0.7)
    assert len(calls) == evaluations
    assert len(sampled.clean) == window + 1
    euler = torch.full((2, 3), (1 + 1 / steps) ** steps)  # of dx = -x dsigma
    torch.testing.assert_close(sampled.clean[0], euler)


def test_the_yardstick_and_the_repository_agree() -> None:
    differences = speed.check(*speed.contestants(speed.Case("small", 6, 5, 2, 1)))
    assert differences["images"] <= 1e-5
    assert differences["reuse"] > 0


def test_a_disagreement_is_noticed() -> None:
    plain, real = speed.contestants(speed.Case("small", 4, 2, 1, 1))
    plain.noise = plain.noise + 1e-3
    with pytest.raises(AssertionError, match="exceeds"):
        speed.check(plain, real)


def curve(scores: list[list[float]]) -> curves.Curve:
    return curves.Curve(
        [0, 5, 10],
        [0, 10, 20],
        [0, 100, 200],
        [0, 50, 100],
        scores,
        [[(0.0, 0.0)] * 3] * len(scores),
    )


def test_a_curve_is_read_between_its_evaluations() -> None:
    read = curve([[0.2, 0.4, 0.6], [0.2, 0.2, 0.2]])
    assert read.mean == pytest.approx([0.2, 0.3, 0.4])
    assert read.error == pytest.approx([0, 0.1, 0.2]), "half the difference of two"
    assert read.at(75) == pytest.approx((0.35, 0.15))
    assert read.seconds_to(0.25) == pytest.approx(25)
    assert read.seconds_to(0.4) == pytest.approx(100)
    assert read.seconds_to(0.41) is None
    assert read.seconds_to(0.1) == 0


def test_methods_are_compared_at_equal_updates_and_seconds() -> None:
    fast = curves.Curve([0, 10], [0, 40], [0, 100], [0, 80], [[0.2, 0.6]], [[(0.0, 0.0)] * 2])
    text = curves.compare({"Flow-GRPO": fast, "TP-GRPO": curve([[0.2, 0.4, 0.5]])}, "Flow-GRPO")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    targets = [
        "seconds to Flow-GRPO's 0.400 (its 20 updates)",
        "seconds to Flow-GRPO's 0.600 (its 40 updates)",
    ]
    assert lines[0] == ["method", "after 20 updates", "after 80 s", *targets]
    assert lines[2] == ["Flow-GRPO", "0.400 ± 0.000", "0.600 ± 0.000", "40", "80"]
    assert lines[3] == ["TP-GRPO", "0.500 ± 0.000", "0.460 ± 0.000", "50", "not reached"]


def test_runs_are_read_and_drawn(tmp_path: Path) -> None:
    for seed, seconds in enumerate((2.0, 4.0, 3.0)):
        folder = tmp_path / f"run-{seed}"
        (folder / "evaluations").mkdir(parents=True)
        lines = [
            {"kind": "train", "epoch": e, "seconds": seconds, "updates": 2 * e, "nfe": 9 * e}
            for e in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for epoch, score in ((0, [0.0, 1.0]), (2, [1.0, 1.0 + seed])):
            path = folder / "evaluations" / f"epoch-{epoch}.safetensors"
            save_file({"exact": torch.tensor(score)}, path, {"prompts": json.dumps(["a", "b"])})
    shutil.copy(path, path.with_name("epoch-1-copy.safetensors"))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"note": "of my own"}\n')
    read = curves.read([tmp_path / f"run-{seed}" for seed in range(3)], "exact")
    assert (read.epochs, read.updates) == ([0, 2], [0, 4])
    assert (read.evaluations, read.seconds) == ([0, 18], [0, 4])
    assert read.mean == [0.5, 1.5]
    assert read.gains[0][1] == pytest.approx((0.5, 0.5))
    curves.draw({"A": read, "B": read}, "exact", tmp_path / "figures" / "curves.png")
    assert (tmp_path / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        "| A | 4 | 0 k | 4 | 1.500 ± 0.289 | +0.500 ± 0.500, +1.000 ± 0.000, +1.500 ± 0.500 |"
        in curves.table({"A": read})
    )


@pytest.mark.parametrize("name", credit.METHODS)
def test_every_method_is_a_config(name: str) -> None:
    method = credit.METHODS[name]
    line = credit.command(method, "shapes_tiny", 3, Path("out"), 14, ["--config.epochs=5"])
    options = dict(option.removeprefix("--config.").split("=", 1) for option in line[3:])
    config: ConfigDict = recipes.build(method.algorithm, method.credit, "shapes_tiny")
    longer = 2 if name == "Flow-GRPO" else 1
    assert (
        f"--config.epochs={longer * config.epochs}" in line and line[-1] == "--config.epochs=5"
    ), "the last one counts"
    for field, value in options.items():
        section, _, last = field.rpartition(".")
        known = config[section] if section else config
        assert str(type(known[last])(value)) == value, f"{field} is known and of that type"
    assert options["run_name"] == f"{method.run}-3"


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"code 3; its words are in .*one.log"):
        credit.train(
            [sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "one.log", 1
        )
    assert (tmp_path / "one.log").read_text() == "why\n"
