"""general_ocr: its formula by hand, and drawn text read by the models in rapidocr's wheel."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw, ImageFont

import reward_models
from reward_models import ocr
from reward_models.ocr import OcrScorer, similarity, target_text

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
ROOT = Path(__file__).resolve().parents[2]


def draw(
    *lines: str,
    size: int = 64,
    font: str = "DejaVuSans",
    side: int = 512,
    fill: str = "black",
    ground: str = "white",
) -> np.ndarray:
    image = Image.new("RGB", (side, side), ground)
    face = ImageFont.truetype(FONTS / f"{font}.ttf", size)
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text(
            (side // 12, side // 6 + 1.6 * size * row), line, fill=fill, font=face
        )
    return np.asarray(image)


def noisy(image: np.ndarray, std: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, std, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    return OcrScorer(workers=0)


@pytest.fixture(scope="module")
def pool() -> Iterator[OcrScorer]:
    scorer = OcrScorer(workers=2)
    yield scorer
    scorer.close()


def score(scorer: OcrScorer, image: np.ndarray, target: str) -> tuple[float, float]:
    result = scorer(image[None], [f'a sign that says "{target}"'], [{}])
    return result.score.item(), result.extras["exact"].item()


@pytest.mark.parametrize(
    "read, target, expected",
    [
        ("hello", "hello", 1.0),
        ("ohhellothere", "hello", 1.0),  # contained
        ("hallo", "hello", 1 - 1 / 5),
        ("hell", "hello", 1 - 1 / 5),
        ("", "hello", 0.0),
        ("h", "hello", 1 - 4 / 5),
        ("somelongandother", "hi", 0.0),  # the distance is at most the length
        ("open24", "open24h", 1 - 1 / 7),
    ],
)
def test_similarity_by_hand(read: str, target: str, expected: float) -> None:
    assert similarity(read, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    "prompt, target",
    [
        ('a sign that says "Hello World"', "helloworld"),
        ('"One" and then "Two"', "one"),
        ("a shop “Café ouvert” at night", "caféouvert"),
        ("ein Schild „Zur Post“ am Haus", "zurpost"),
        ('mixed “Open" marks', "open"),
        ('full width "ＯＰＥＮ　２４"', "open24"),
        ('decomposed "Cafe\u0301"', "caf\u00e9"),
        ('a fraction "Size 13½"', "size131/2"),
        ('typed otherwise "Size 13 1⁄2, 1∕4"', "size131/2,1/4"),
        ("a “Joe’s”, ‘open’", "joe's"),
        ('dashes "9–5 — non‐stop −3"', "9-5-non-stop-3"),
        ('super "E = mc²…"', "e=mc2..."),
    ],
)
def test_the_target_is_the_first_quoted_text_normalised(prompt: str, target: str) -> None:
    assert target_text(prompt) == target


@pytest.mark.parametrize("prompt", ["a sign", 'a "  " sign', 'one " mark', "single 'quotes'", '""'])
def test_a_prompt_without_quoted_text_is_named(prompt: str, scorer: OcrScorer) -> None:
    with pytest.raises(ValueError, match="has no text between double quotes") as caught:
        target_text(prompt)
    assert repr(prompt) in str(caught.value)
    with pytest.raises(ValueError, match="has no text between double quotes"):
        scorer.check(['fine "x"', prompt], [{}, {}])


@pytest.mark.parametrize("size", [16, 24, 48, 80])
@pytest.mark.parametrize(
    "font", ["DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneralItalic"]
)
def test_it_reads_what_is_drawn(scorer: OcrScorer, font: str, size: int) -> None:
    assert score(scorer, draw("Coffee", size=size, font=font), "COFFEE") == (1.0, 1.0)


def test_two_lines_are_read_from_top_to_bottom(scorer: OcrScorer) -> None:
    image = draw("GOOD", "MORNING")
    assert score(scorer, image, "Good Morning") == (1.0, 1.0)
    assert score(scorer, image, "morning") == (1.0, 0.0), "contained is not exact"
    assert score(scorer, image, "Good Evening") == (np.float32(1 - 3 / 11), 0.0), "mor -> eve"


def test_noise_colour_unicode_and_size_of_the_image(scorer: OcrScorer) -> None:
    assert score(scorer, noisy(draw("HELLO WORLD", size=56), 60), "hello world") == (1.0, 1.0)
    assert score(scorer, draw("HELLO", fill="red", ground="blue"), "hello") == (1.0, 1.0)
    assert score(scorer, draw("Café Zürich", size=48), "café zürich") == (1.0, 1.0)
    assert score(scorer, draw("HELLO", size=20, side=128), "hello") == (1.0, 1.0)
    assert score(scorer, draw("HELLO", size=64, side=768), "hello") == (1.0, 1.0)


@pytest.mark.parametrize(
    "text", ["Size 13½", "¼ cup", "2 ¾ in", "No. 1⁄2", "Joe’s Bar", "9–5 open", "5−3 = 2", "x² + y"]
)
def test_signs_that_a_reader_prints_otherwise_are_read(scorer: OcrScorer, text: str) -> None:
    assert score(scorer, draw(text, size=48), text) == (1.0, 1.0)


@pytest.mark.parametrize(
    "image",
    [np.full((512, 512, 3), 127, np.uint8), noisy(np.full((512, 512, 3), 127, np.uint8), 80)],
)
def test_an_image_without_text_scores_exactly_zero(scorer: OcrScorer, image: np.ndarray) -> None:
    for target in ("a", "hello"):
        assert score(scorer, image, target) == (0.0, 0.0)


def test_colours_reach_the_reader_in_its_order(
    scorer: OcrScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Blind:
        txts = None

        def __call__(self, image: np.ndarray) -> Blind:
            seen.append(image)
            return self

    monkeypatch.setattr(ocr, "_load", lambda engine: Blind())
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert scorer.read(red[None]) == [""]
    assert seen[0][0, 0].tolist() == [0, 0, 255]
    assert seen[0].flags.c_contiguous


def test_a_pool_reads_what_one_process_reads_and_ends(scorer: OcrScorer) -> None:
    images = np.stack(
        [draw("Open 24h"), draw("GOOD", "MORNING"), np.zeros((512, 512, 3), np.uint8)]
    )
    prompts = ['"open 24h"', '"good morning"', '"x"']
    order = [2, 0, 1]
    pool = OcrScorer(workers=2)
    alone, together = scorer(images, prompts, [{}] * 3), pool(images, prompts, [{}] * 3)
    permuted = pool(images[order], [prompts[i] for i in order], [{}] * 3)
    assert alone.score.tolist() == together.score.tolist() == [1, 1, 0]
    assert permuted.score.tolist() == together.score[order].tolist()
    assert pool._pool is not None
    processes = [psutil.Process(process.pid) for process in pool._pool.processes]
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.engine == pool.engine
    assert copy._pool is None
    pool.close()
    assert len(processes) == 2
    assert not any(process.is_running() for process in processes)
    assert pool(images[:1], prompts[:1], [{}]).score.tolist() == [1], "it can be used again"
    pool.close()


def test_idle_readers_ignore_ctrl_c(pool: OcrScorer) -> None:
    image = draw("Open")[None]
    pool.read(image)
    assert pool._pool is not None
    readers = [psutil.Process(process.pid) for process in pool._pool.processes]
    for reader in readers:
        reader.send_signal(signal.SIGINT)
    assert not psutil.wait_procs(readers, timeout=0.5)[0]
    assert pool.read(image) == ["Open"]


def test_a_reader_that_dies_is_an_error_and_the_next_call_starts_another(pool: OcrScorer) -> None:
    image = draw("Open")[None]
    assert pool(image, ['"open"'], [{}]).score.tolist() == [1]
    assert pool._pool is not None
    for process in pool._pool.processes:
        process.kill()
    with pytest.raises(RuntimeError, match="a reading process died"):
        for _ in range(20):  # until the pool has noticed
            pool(image, ['"open"'], [{}])
            time.sleep(0.1)
    assert pool(image, ['"open"'], [{}]).score.tolist() == [1]


SCRIPT = """
import os, sys, time
import numpy as np
from reward_models.ocr import OcrScorer
if __name__ == "__main__":
    scorer = OcrScorer(workers=1)
    scorer.read(np.zeros((1, 64, 64, 3), np.uint8))
    print(scorer._pool.processes[0].pid, flush=True)
    try:
        scorer.read(np.zeros((1000, 512, 512, 3), np.uint8))
    except KeyboardInterrupt:
        scorer.close()
        print("closed", flush=True)
"""


UNGUARDED = """
import numpy as np
from tp_grpo.rewards.reward_set import RewardSet
print("main", flush=True)
rewards = RewardSet({"general_ocr": {"workers": 2}})
image = np.load("open.npy")[None].repeat(3, 0)
image[1:] = [[[[0]]], [[[255]]]]
print(rewards.score(image, ['"open"'] * 3, [{}] * 3).total.tolist(), rewards.errors)
"""


def test_a_script_without_a_guard_gets_its_scores(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    np.save(tmp_path / "open.npy", draw("Open"))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "main\n[1.0, 0.0, 0.0] {}\n", done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_reader_outlives_ctrl_c_or_a_killed_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "reads.py"
    script.write_text(SCRIPT)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    reader = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    for process in (
        (parent, reader) if how == signal.SIGINT else (parent,)
    ):  # a terminal's Ctrl-C reaches both
        process.send_signal(how)
    parent.wait(timeout=20)
    assert not psutil.wait_procs([reader], timeout=20)[1]
    if how == signal.SIGINT:
        assert parent.stdout.read().strip() == "closed"
        assert parent.stderr.read() == ""
        assert parent.returncode == 0


def test_the_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)), raising=False)
    assert OcrScorer().workers == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert OcrScorer().workers == 3, "32 cores / 8 ranks, one of four for the rank itself"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"workers": -2}, "workers = -2 must be at least -1"),
        ({"threads": 0}, "threads = 0 at least 1"),
        ({"text_score": 1.5}, r"text_score = 1.5 in \[0, 1\]"),
        (
            {"provider": "CUDA"},
            "provider = 'CUDA' is not available; this onnxruntime offers .*CPUExecutionProvider",
        ),
        ({"path": "."}, r"must hold one \*_det_\*.onnx, it holds none"),
        ({"language": "en"}, "does not take the options"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_models.build("general_ocr", **options)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = ocr.importlib.util.find_spec
    monkeypatch.setattr(
        ocr.importlib.util, "find_spec", lambda name: None if name == "rapidocr" else find(name)
    )
    with pytest.raises(ValueError, match=r'needs rapidocr: pip install "tp_grpo\[ocr\]"'):
        reward_models.build("general_ocr")


def test_a_gpu_that_onnxruntime_falls_back_from_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
    scorer = OcrScorer(provider="CUDAExecutionProvider")
    assert scorer.workers == 0
    with pytest.raises(
        RuntimeError, match="reads with CPUExecutionProvider, not CUDAExecutionProvider"
    ):
        scorer.read(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_reader_that_cannot_start_is_reported_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
    with pytest.raises(
        ValueError, match="reader does not start: RuntimeError: onnxruntime reads with CPUExecution"
    ):
        OcrScorer(provider="CUDAExecutionProvider").check(['a sign "Open"'], [{}])

    def lacks_opengl(engine: ocr.Engine) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(ocr, "_load", lacks_opengl)
    with pytest.raises(ValueError, match=r"libGL\.so\.1: .*; pip install opencv-python-headless"):
        OcrScorer(workers=0).check(['a sign "Open"'], [{}])


def test_check_starts_the_readers_that_the_run_will_use(pool: OcrScorer) -> None:
    pool.close()
    pool.check(['a sign "Open"'], [{}])
    assert pool._pool is not None


def test_it_never_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    ocr._load.cache_clear()
    assert score(OcrScorer(workers=0), draw("Open"), "open") == (1.0, 1.0)
