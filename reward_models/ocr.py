"""`general_ocr`: does the image show the text that its prompt puts between double quotes?

The reader is rapidocr's PP-OCR, whose wheel contains the models: nothing is downloaded. The score
is Flow-GRPO's (arXiv 2505.05470): 1 minus the edit distance between the text read and the text
asked for, over the length of the latter.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.base import Metadata, Scores
from reward_models.check import GOLDEN_TEXT, Check, golden_cases
from reward_models.loading import expanded
from reward_models.options import environment_number
from reward_models.readers import ReaderDied, Readers

QUOTED = re.compile('["“„]([^"“”„]*)["”“]')
CPU = "CPUExecutionProvider"
# onnxruntime's name of a provider -> rapidocr's
PROVIDERS = {
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "CoreMLExecutionProvider": "coreml",
}
MOST_WORKERS = 16
# Fraction and division slash; hyphens, dashes and minus; quotation marks used as apostrophes.
_PLAIN = {
    "/": "\u2044\u2215",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "'": "\u2018\u2019\u02bc",
}
PLAIN = {ord(sign): plain for plain, signs in _PLAIN.items() for sign in signs}


def target_text(prompt: str) -> str:
    """The text between the first pair of double quotes (" or “ ”) of the prompt, normalised.

    Raises ValueError, naming the prompt, when there is none or it is blank.
    """
    match = QUOTED.search(prompt)
    target = normalise(match.group(1)) if match else ""
    if not target:
        example = 'as in: a sign "Open"'
        raise ValueError(
            f"general_ocr: the prompt {prompt!r} has no text between double quotes, {example}"
        )
    return target


def normalise(text: str) -> str:
    """NFKC, lower case, without white space; fractions, dashes and apostrophes in their plain form.

    Readers print such signs now one way, now another: 1/4 for ¼, but ½ for ½; ' for ’. NFKC turns ½
    into 1, a fraction slash that no reader prints, and 2; here it becomes 1/2.
    """
    return "".join(unicodedata.normalize("NFKC", text).translate(PLAIN).lower().split())


def similarity(text: str, target: str) -> float:
    """1 - min(d, n) / n in [0, 1], with n the length of the target, which is not empty.

    The edit distance d is 0 if the text contains the target. Both are normalised.
    """
    from rapidfuzz.distance import Levenshtein

    distance = 0 if target in text else Levenshtein.distance(text, target)
    return 1 - min(distance, len(target)) / len(target)


@dataclass(frozen=True)
class Engine:
    """The settings of a reader; hashable, so that each process loads it once."""

    detector: str
    recogniser: str
    provider: str
    device_id: int
    side: int
    text_score: float
    threads: int


class OcrScorer:
    """score: similarity of the text read to the text asked for; extra: exact, 1 if equal, else 0.

    workers: processes that read; 0 reads in this one; -1 takes this rank's share of the cores, at
    most 16, or reads in this process if the provider is a GPU. threads: of onnxruntime, for each.
    side: in pixels; an image with a shorter side is enlarged to it before the detection of text.
    text_score: lines read with a confidence below it, in [0, 1], do not count.
    provider: onnxruntime's name of what it runs on. device_id: which GPU; by default this rank's.
    path: a folder with other models, one *_det_*.onnx and one *_rec_*.onnx.

    Raises ValueError when a package or a model is missing, or onnxruntime lacks the provider.
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
        folder = _model_folder(path)
        _check_provider(provider)
        if workers < -1 or threads < 1 or side < 32 or not 0 <= text_score <= 1:
            raise ValueError(
                f"general_ocr: workers = {workers} must be at least -1, threads = {threads} at "
                f"least 1, side = {side} at least 32 pixels, text_score = {text_score} in [0, 1]"
            )
        if device_id < 0:
            device_id = environment_number("general_ocr", "LOCAL_RANK", 0)
        detector, recogniser = _one_model(folder, "det"), _one_model(folder, "rec")
        self.engine = Engine(detector, recogniser, provider, device_id, side, text_score, threads)
        self.workers = _share_of_cores() if workers < 0 and provider == CPU else max(workers, 0)
        self._pool: Readers | None = None

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        targets = [target_text(prompt) for prompt in prompts]
        texts = [normalise(text) for text in self.read(images)]
        pairs = list(zip(texts, targets, strict=True))
        exact = np.array([text == target for text, target in pairs], dtype=np.float32)
        return Scores(np.array([similarity(*p) for p in pairs], np.float32), {"exact": exact})

    def check(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Raises ValueError for a prompt that quotes no text, and if the reader does not start."""
        for prompt in prompts:
            target_text(prompt)
        try:
            self.read(np.zeros((1, self.engine.side, self.engine.side, 3), dtype=np.uint8))
        except Exception as error:  # whatever onnxruntime, OpenCV and their native libraries raise
            advice = "; pip install opencv-python-headless, or the system's libgl1"
            advice = advice if "libGL" in str(error) else ""
            reason = f"{type(error).__name__}: {error}{advice}"
            raise ValueError(f"general_ocr: the reader does not start: {reason}") from error

    def read(self, images: np.ndarray) -> list[str]:
        """The text of each image (H, W, 3) uint8 RGB: its lines from top to bottom, joined."""
        if not self.workers:
            return [_read(self.engine, image) for image in images]
        if self._pool is None:
            self._pool = Readers(self.workers)
        try:
            return self._pool.map(_read, [(self.engine, image) for image in images])
        except ReaderDied as error:
            self.close()  # the next call starts others
            raise RuntimeError(f"a reading process died, of memory or an image: {error}") from error

    def close(self) -> None:
        """End the processes and drop what they have not begun. A later call starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}


def _read(engine: Engine, image: np.ndarray) -> str:
    result = _load(engine)(np.ascontiguousarray(image[..., ::-1]))  # RGB -> BGR
    return "".join(result.txts or ())


@functools.cache
def _load(engine: Engine) -> Any:
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(engine.threads)
    onnx = "EngineConfig.onnxruntime"
    params: dict[str, Any] = {
        "Global.use_cls": False,  # the classifier of orientations would turn upright text
        "Global.log_level": "error",
        "Global.text_score": engine.text_score,
        "Det.limit_side_len": engine.side,
        "Det.model_path": engine.detector,
        "Rec.model_path": engine.recogniser,
        f"{onnx}.intra_op_num_threads": engine.threads,
        f"{onnx}.inter_op_num_threads": engine.threads,
    }
    if engine.provider != CPU:
        params[f"{onnx}.use_{PROVIDERS[engine.provider]}"] = True
        params[f"{onnx}.cuda_ep_cfg.device_id"] = engine.device_id
    reader: Any = RapidOCR(params=params)
    reader(np.zeros((engine.side, engine.side, 3), dtype=np.uint8))  # loads the models
    running = reader.text_det.session.session.get_providers()[0]
    if running != engine.provider:
        raise RuntimeError(
            f"onnxruntime reads with {running}, not {engine.provider}: do its CUDA and cuDNN "
            "versions match yours?"
        )
    return reader


def _model_folder(path: str) -> Path:
    """Raises ValueError, with the command that installs it, for a missing package."""
    packages = OcrScorer.doctor.packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'general_ocr needs {", ".join(missing)}: pip install "tp_grpo[ocr]"')
    if path:
        return expanded(path)
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "models"


def _one_model(folder: Path, kind: str) -> str:
    models = sorted(folder.glob(f"*_{kind}_*.onnx"))
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or "none"
        raise ValueError(f"general_ocr: {folder} must hold one *_{kind}_*.onnx, it holds {names}")
    return str(models[0])


def _check_provider(provider: str) -> None:
    if provider == CPU:
        return
    from onnxruntime import get_available_providers

    if provider not in PROVIDERS or provider not in get_available_providers():
        offered = ", ".join(get_available_providers())
        raise ValueError(
            f"general_ocr: provider = {provider!r} is not available; this onnxruntime offers "
            f"{offered}. For an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )


def _share_of_cores() -> int:
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    share = cores // max(1, environment_number("general_ocr", "LOCAL_WORLD_SIZE", 1))
    return min(max(1, share - 1), MOST_WORKERS)  # one core is for the rank itself
