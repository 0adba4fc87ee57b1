"""The published OCR recipe trains two epochs with the real engine, in process and by server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import forked

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {
    "epochs": 2,
    "model.dtype": "fp32",
    "model.height": 48,
    "model.width": 48,
    "model.max_sequence_length": 12,
    "sample.groups_per_epoch": 2,
    "sample.group_size": 2,
    "sample.batch_size": 2,
    "sample.steps": 4,
    "sample.window_size": 2,
    "eval.steps": 2,
    "eval.prompts": 2,
    "tracking.images_every": 1,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's own prompts, made by the command that its error names."""
    out = tmp_path_factory.mktemp("dataset")
    command = [sys.executable, "scripts/prepare_prompts.py", "general_ocr", f"--out={out}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return out / "general_ocr"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scorers = json.dumps({"general_ocr": {"workers": 0}, "jpeg": {}})
    command = [
        sys.executable,
        "-m",
        "reward_models.server",
        "--scorers",
        scorers,
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{url}/health", timeout=1
            )
            break
        except OSError:
            assert process.poll() is None, "the server ended at once"
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait(timeout=30)


def train(random_sd3: Path, dataset: Path, out: Path, *more: str) -> list[dict]:
    command = ["scripts/train.py", "--config=config/tp_grpo.py:general_ocr_sd3"]
    command += [
        f"--config.model.path={random_sd3}",
        f"--config.output_dir={out}",
        "--config.run_name=ocr",
    ]
    command += [
        f"--config.prompts.train={dataset}/train.txt",
        f"--config.prompts.eval={dataset}/test.txt",
    ]
    command += [f"--config.{name}={value}" for name, value in FIELDS.items()]
    done = forked.run(*command, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (out / "ocr" / "metrics.jsonl").read_text().splitlines()]


def test_in_process_and_through_the_server_train_alike(
    random_sd3: Path, dataset: Path, server: str, tmp_path: Path
) -> None:
    # Images of random weights hold no text: without jpeg every reward would be 0.
    both = {"general_ocr": {"weight": 1.0}, "jpeg": {"weight": 1.0}}
    here = train(random_sd3, dataset, tmp_path / "here", f"--config.rewards.scorers={both}")
    remote = {name: {**options, "remote": server} for name, options in both.items()}
    away = train(random_sd3, dataset, tmp_path / "there", f"--config.rewards.scorers={remote}")
    kept = yaml.safe_load((tmp_path / "there" / "ocr" / "config.yaml").read_text())
    assert kept["rewards"]["scorers"]["general_ocr"]["remote"] == server
    for lines in (here, away):
        assert [line["epoch"] for line in lines if line["kind"] == "train"] == [1, 2]
        assert all(
            "general_ocr/exact" in line and line["failed"] == 0
            for line in lines
            if line["kind"] == "train"
        )
        assert all(line["grad_norm"] > 0 for line in lines if line["kind"] == "train")
        assert len({line["reward"] for line in lines if line["kind"] == "train"}) == 2
    for one, other in zip(here, away, strict=True):
        for name in ("reward", "loss", "total", "grad_norm"):
            assert one.get(name) == other.get(name)
