"""`general_ocr`: does the image show the text that its prompt puts between double quotes?

Read by rapidocr's PP-OCR models, which come inside its wheel; nothing is downloaded. The score is that of Flow-GRPO
(arXiv 2505.05470): 1 minus the edit distance from what was read to what was asked, over the length of the latter.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import re
import signal
import threading
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.base import Metadata, Scores
from reward_models.check import GOLDEN_TEXT, Check, golden_cases

QUOTED = re.compile('["“„]([^"“”„]*)["”“]')
CPU = "CPUExecutionProvider"
# onnxruntime's names -> the switch that rapidocr has for each
SWITCHES = {
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "CoreMLExecutionProvider": "coreml",
}
MOST_WORKERS = 16


def target_text(prompt: str) -> str:
    """What the prompt asks for: the text between its first pair of double quotes (" or “ ”), normalised.

    Raises ValueError, naming the prompt, when there is none or it is blank.
    """
    match = QUOTED.search(prompt)
    target = normalise(match.group(1)) if match else ""
    if not target:
        raise ValueError(
            f'general_ocr: the prompt {prompt!r} has no text between double quotes, as in: a sign "Open"'
        )
    return target


def normalise(text: str) -> str:
    """NFKC, lower case, without white space: what one reads alike counts as alike."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def similarity(read: str, target: str) -> float:
    """1 - min(d, n) / n in [0, 1], n the length of the target; the distance d is 0 where `read` contains the target.

    Both normalised, the target not empty.
    """
    from rapidfuzz.distance import Levenshtein

    distance = 0 if target in read else Levenshtein.distance(read, target)
    return 1 - min(distance, len(target)) / len(target)


@dataclass(frozen=True)
class Engine:
    """How the reader is built; hashable, so that each process builds it once."""

    detector: str
    recogniser: str
    provider: str
    device_id: int
    side: int
    text_score: float
    threads: int


class OcrScorer:
    """score = similarity of what is read to what is asked, in [0, 1]; extra: exact, 1 where both are equal, else 0.

    workers: processes that read; 0 reads in this one; -1 takes this process' share of the cores, at most 16, and reads
    in this process where the provider is a GPU. threads: onnxruntime threads of each. side: in pixels; an image whose
    shorter side is less is enlarged to it before text is looked for. text_score: lines read less surely than this, in
    [0, 1], do not count. provider: onnxruntime's name of what it runs on; device_id: which GPU, by default this rank's.
    path: a folder with other models, one *_det_*.onnx and one *_rec_*.onnx.

    Raises ValueError when a package or a model is missing, or onnxruntime does not offer the provider.
    """

    doctor = Check(
        packages=("rapidocr", "onnxruntime", "rapidfuzz"),
        extra="ocr",
        cases=lambda: golden_cases(f'a white sign with the black text "{GOLDEN_TEXT}"', text=1),
        options={"workers": 0},
    )

    def __init__(
        self,
        workers: int = -1,
        *,
        threads: int = 1,
        side: int = 512,
        text_score: float = 0.5,
        provider: str = CPU,
        device_id: int = -1,
        path: str = "",
    ) -> None:
        folder = _models(path)
        _check_provider(provider)
        if workers < -1 or threads < 1 or side < 32 or not 0 <= text_score <= 1:
            raise ValueError(
                f"general_ocr: workers = {workers} must be at least -1, threads = {threads} at least 1, side = {side} "
                f"at least 32 pixels, and text_score = {text_score} in [0, 1]"
            )
        device_id = int(os.environ.get("LOCAL_RANK", 0)) if device_id < 0 else device_id
        detector, recogniser = (_one_model(folder, kind) for kind in ("det", "rec"))
        self.engine = Engine(detector, recogniser, provider, device_id, side, text_score, threads)
        self.workers = _share_of_cores() if workers < 0 and provider == CPU else max(workers, 0)
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        targets = [target_text(prompt) for prompt in prompts]
        texts = [normalise(text) for text in self.read(images)]
        pairs = list(zip(texts, targets, strict=True))
        score = np.array([similarity(text, target) for text, target in pairs], dtype=np.float32)
        return Scores(
            score, {"exact": np.array([text == target for text, target in pairs], dtype=np.float32)}
        )

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError for the first prompt that quotes no text, and for a reader that does not start."""
        for prompt in prompts:
            target_text(prompt)
        try:
            self.read(np.zeros((1, self.engine.side, self.engine.side, 3), dtype=np.uint8))
        except Exception as error:  # whatever onnxruntime, OpenCV and their native libraries raise
            lacks = "libGL" in str(error)
            advice = "; pip install opencv-python-headless, or the system's libgl1" if lacks else ""
            raise ValueError(
                f"general_ocr: the reader does not start: {type(error).__name__}: {error}{advice}"
            ) from error

    def read(self, images: np.ndarray) -> list[str]:
        """The text of each image (H, W, 3) uint8 RGB: its lines from top to bottom, joined; "" where there is none."""
        if not self.workers:
            return [_read(self.engine, image) for image in images]
        if self._pool is None:
            spawn = multiprocessing.get_context(
                "spawn"
            )  # a fork would inherit CUDA and the threads' locks
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=spawn, initializer=_start_worker
            )
        try:
            return list(self._pool.map(functools.partial(_read, self.engine), images))
        except BrokenProcessPool as error:
            self._pool = None  # the next call starts a new one
            raise RuntimeError(
                f"a reading process died, of memory or of an image: {error}"
            ) from error

    def close(self) -> None:
        """End the processes; what they have not begun is dropped. A later call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}


def _read(engine: Engine, image: np.ndarray) -> str:
    found = _build(engine)(np.ascontiguousarray(image[..., ::-1]))  # it expects BGR
    return "".join(found.txts or ())


@functools.cache
def _build(engine: Engine) -> Any:
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(engine.threads)
    onnx = "EngineConfig.onnxruntime"
    params: dict[str, Any] = {
        "Global.use_cls": False,  # the orientation classifier would turn text that stands upright
        "Global.log_level": "error",
        "Global.text_score": engine.text_score,
        "Det.limit_side_len": engine.side,
        "Det.model_path": engine.detector,
        "Rec.model_path": engine.recogniser,
        f"{onnx}.intra_op_num_threads": engine.threads,
        f"{onnx}.inter_op_num_threads": engine.threads,
    }
    if engine.provider != CPU:
        switch = SWITCHES[engine.provider]
        params |= {f"{onnx}.use_{switch}": True, f"{onnx}.cuda_ep_cfg.device_id": engine.device_id}
    reader: Any = RapidOCR(params=params)
    reader(
        np.zeros((engine.side, engine.side, 3), dtype=np.uint8)
    )  # the models load with the first image
    running = reader.text_det.session.session.get_providers()[0]
    if running != engine.provider:
        raise RuntimeError(
            f"onnxruntime reads with {running}, not {engine.provider}: do its CUDA and cuDNN versions match yours?"
        )
    return reader


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; and no reader outlives its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _models(path: str) -> Path:
    """The folder of the models; raises ValueError, with the command that mends it, for a missing package."""
    missing = [name for name in OcrScorer.doctor.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'general_ocr needs {", ".join(missing)}: pip install "tp_grpo[ocr]"')
    if path:
        return Path(path).expanduser()
    (root,) = importlib.util.find_spec("rapidocr").submodule_search_locations or [""]  # type: ignore[union-attr]
    return Path(root) / "models"


def _one_model(folder: Path, kind: str) -> str:
    found = sorted(folder.glob(f"*_{kind}_*.onnx"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"general_ocr: {folder} must hold one *_{kind}_*.onnx, it holds {names}")
    return str(found[0])


def _check_provider(provider: str) -> None:
    if provider == CPU:
        return
    from onnxruntime import get_available_providers

    if provider not in SWITCHES or provider not in get_available_providers():
        raise ValueError(
            f"general_ocr: provider = {provider!r} is not to be had; this onnxruntime offers "
            f"{', '.join(get_available_providers())}. "
            "For an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )


def _share_of_cores() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1), MOST_WORKERS)
