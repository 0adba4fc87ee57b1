"""metrics.jsonl, and trackers by name."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import wandb
from accelerate import Accelerator
from safetensors.torch import save_file

from tp_grpo.observe import tracking
from tp_grpo.store import files
from tp_grpo.store.checkpoint import Checkpoint


def test_rewind_forgets_later_epochs_and_torn_lines(tmp_path: Path) -> None:
    tracker = tracking.Tracker(
        Accelerator(cpu=True), tmp_path, {"seed": 1}, [("ranks", "1")], "test"
    )
    for epoch in range(4):
        tracker.log("train", epoch, {"reward": epoch / 2})
    with tracker.metrics.open("a") as file:
        file.write('{"kind": "note", "epoch": 9}\n{"note": "mine"}\n# moved to the other disk\n')
        file.write('{"kind": "train", "ep')
    tracker.rewind(2)
    texts = tracker.metrics.read_text().splitlines()
    assert texts.pop() == "# moved to the other disk"
    lines = [json.loads(line) for line in texts]
    assert [line.get("epoch") for line in lines] == [0, 1, 2, 9, None], "lines of one's own stay"


def test_the_records_are_the_runs_lines_without_those_of_ones_own(tmp_path: Path) -> None:
    run = {"kind": "train", "epoch": 1, "reward": 0.5, "shapes_se": None}
    foreign = (
        *({"note": "x"}, {"kind": "train", "note": "x"}, {"kind": "train", "epoch": 1, "n": "x"}),
        *({"kind": "note", "epoch": 3, "x": 1}, {"kind": ["train"], "epoch": 1, "x": 1}),
        *({"kind": "train", "epoch": "1", "x": 1}, {"kind": "eval", "epoch": True, "x": 1}),
    )
    path = tmp_path / "metrics.jsonl"
    lines = (*foreign, run | {"note": "x", "table": [1]}, *foreign)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tracking.records(path) == [run]


def evaluated(folder: Path, *epochs: int, **settings: object) -> tracking.Tracker:
    """A tracker of a run with these settings of evaluations, which saves those of `epochs`."""
    tracker = tracking.Tracker(Accelerator(cpu=True), folder, {}, [], "test", evaluation=settings)
    for epoch in epochs:
        tracker.log("eval", epoch, {"total": 0.5})
        images = torch.zeros(1, 8, 8, 3).byte()
        tracker.save("evaluations", epoch, {"total": torch.ones(1), "images": images}, ["a cat"])
    return tracker


@pytest.mark.parametrize(
    "steps, branches, kept", [(4, False, [0, 1, 2]), (4, True, [0, 1]), (2, True, [])]
)
def test_only_evaluations_that_can_be_compared_with_the_next_ones_stay(
    steps: int, branches: bool, kept: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one of the epoch where a branch begins may be of the weights that it replaces."""
    evaluated(tmp_path, 0, 1, 2, 3, steps=4)
    tracker = evaluated(tmp_path, steps=steps)
    tracker.rewind(2, branches)
    assert [epoch for epoch in range(4) if tracker.has_evaluation(epoch)] == kept
    assert [line["epoch"] for line in files.read_lines(tracker.metrics)] == kept
    assert ("other settings:\n  steps: 4 then, 2 now" in capsys.readouterr().out) == (steps == 2)


def test_an_evaluation_from_before_its_settings_were_kept_stays_in_its_own_run(
    tmp_path: Path,
) -> None:
    path = tracking.path_of(evaluated(tmp_path, 0).folder / "evaluations", 0)
    for branches in (False, True):
        save_file({"total": torch.ones(1)}, path, {"prompts": "[]"})
        tracker = evaluated(tmp_path, steps=4)
        tracker.rewind(1, branches)
        assert tracker.has_evaluation(0) != branches


def test_wandb_without_a_login_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tracking.go_offline_without_login(("wandb",))
    assert os.environ.pop("WANDB_MODE") == "offline"


def test_a_netrc_that_cannot_be_read_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    netrc = tmp_path / ".netrc"
    netrc.write_bytes(b"machine caf\xe9.example\n")
    for trackers in ((), ("wandb",)):
        tracking.go_offline_without_login(trackers)
        assert os.environ.pop("WANDB_MODE", "") == ("offline" if trackers else "")
    netrc.unlink()
    netrc.symlink_to(netrc)  # whoever reads it gets an OSError
    tracking.go_offline_without_login(("wandb",))
    assert os.environ.pop("WANDB_MODE") == "offline"


@pytest.mark.parametrize("there", [True, False])
def test_wandb_with_a_login_is_offline_where_its_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        if there:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        tracking.go_offline_without_login(("wandb",))
    assert os.environ.pop("WANDB_MODE", "online") == ("online" if there else "offline")
    assert (f"nothing answers at {url} within 5 s" in capsys.readouterr().out) != there


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("WANDB_BASE_URL", "http://localhost:abc", " = 'http://localhost:abc' is .*invalid port"),
        ("WANDB_BASE_URL", "localhost:80", " = 'localhost:80' is nothing that wandb can use: URL"),
        ("WANDB_MODE", "foo", " = 'foo' is nothing that wandb can use: Input should be 'online'"),
        ("WANDB_RUN_ID", "a/b", " = 'a/b' is nothing that wandb can use: Run ID cannot contain"),
        ("WANDB_INIT_TIMEOUT", "x", " = 'x' is nothing that wandb can use: Input should be a val"),
    ],
)
def test_a_variable_that_wandb_cannot_use_is_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^the environment's {name}{message}") as raised:
        tracking.go_offline_without_login(("wandb",))
    assert "\n" not in str(raised.value)


def test_a_server_that_speaks_no_http_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 a mail server\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracking.go_offline_without_login(("wandb",))
    assert os.environ.pop("WANDB_MODE") == "offline"


def test_a_run_that_wandb_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise wandb.errors.CommError("permission denied\n(Error 403)")

    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "init_trackers", refuse)
    with pytest.raises(ValueError, match=r"refuses the run: permission denied \(Error 403\);"):
        tracking.Tracker(accelerator, tmp_path, {}, [], "test")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_both_trackers_take_a_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    accelerator = Accelerator(cpu=True, log_with=[name], project_dir=str(tmp_path))
    tracker = tracking.Tracker(
        accelerator, tmp_path, {"seed": 1, "sample": {"steps": 4}}, [("ranks", "1")], "test"
    )
    tracker.log("train", 1, {"reward": 0.5})
    accelerator.end_training()
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert any("tfevents" in n or n.endswith(".wandb") for n in left), left


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_resumed_run_continues_the_same_curves(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed after epoch 2 was logged but not saved: the curve has the values of the second try."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def log(resumes: Checkpoint | None, values: dict[int, float]) -> tracking.Tracker:
        accelerator = Accelerator(cpu=True, log_with=[name], project_dir=str(tmp_path))
        tracker = tracking.Tracker(
            accelerator, tmp_path, {"seed": 1}, [("ranks", "1")], "test", resumes
        )
        for epoch, value in values.items():
            tracker.log("train", epoch, {"reward": value})
        accelerator.end_training()
        return tracker

    first = log(None, {1: 0.25, 2: 0.5})
    time.sleep(1.1)  # wandb names a run's folder by the second
    second = log(Checkpoint(1, {}, {}, {}, tracker=first.run_id), {2: 0.75, 3: 1.0})
    assert second.run_id == first.run_id
    assert log(None, {}).run_id != first.run_id
    if name == "wandb":
        started = list((tmp_path / "wandb").glob(f"offline-run-*-{first.run_id}"))
        assert len(started) == 2, "wandb sync joins runs of one id"
    else:
        from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

        curves = EventMultiplexer({"run": str(tmp_path / "test")}).Reload()
        assert [(s.step, s.value) for s in curves.Scalars("run", "train/reward")] == [
            (1, 0.25),
            (2, 0.75),
            (3, 1.0),
        ]
