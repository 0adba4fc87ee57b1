"""What travels between reward client and server: a safetensors body there, JSON back.

Request: the tensor `images` (B, H, W, 3) uint8; or, for slow networks, `png` (bytes,) uint8, B PNG
files one after the other, with `ends` (B,) int64, where each file ends. The __metadata__ of the
safetensors header holds, as JSON, `prompts`, a list of B strings, and `metadata`, a list of B
objects. Nothing is unpickled.

Reply: {"score": [B numbers], "extras": {name: [B numbers]}, "reason": a string}; null for what is
not finite. The reason is why an image has no score, or "".
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from reward_models.base import Metadata, Scores

MEBIBYTE = 2**20
TEXT_BYTES = 50  # of memory that a byte of JSON takes at most, as objects
DECODER_BYTES = 10  # of memory that Pillow takes for each pixel of the image it unpacks
PNG_HEAD = 26  # bytes of a PNG up to its colour type
PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


class BadBody(ValueError):
    """A body or reply that is not as this module describes; the message says why."""


def encode_png(image: np.ndarray) -> bytes:
    """One image (H, W, 3) uint8 as a PNG file, compressed quickly rather than well."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _are_images(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def encode(
    images: np.ndarray, prompts: list[str], metadata: list[Metadata], *, png: bool = False
) -> bytes:
    """The body for images (B, H, W, 3) uint8.

    Raises TypeError for other arrays and for metadata that JSON cannot hold.
    """
    if not _are_images(images):
        raise TypeError(f"images must be (B, H, W, 3) uint8, not {images.shape} {images.dtype}")
    tensors = {"images": np.ascontiguousarray(images)}
    if png:
        files = [encode_png(image) for image in images]
        ends = np.cumsum([len(file) for file in files])
        tensors = {"png": np.frombuffer(b"".join(files), np.uint8), "ends": ends}
    texts = {"prompts": json.dumps(prompts), "metadata": json.dumps(metadata)}
    return save(tensors, metadata=texts)


def decode(
    body: bytes, max_bytes: int, reserve: Callable[[int], None] = lambda size: None
) -> tuple[np.ndarray, list[str], list[Metadata]]:
    """Images (B, H, W, 3) uint8, prompts and metadata of a body. Raises BadBody.

    max_bytes: limit of the unpacked images; a PNG of kilobytes may unpack to gigabytes.
    reserve: called with every number of bytes before they are allocated; it may raise.
    """
    size = int.from_bytes(body[:8], "little")  # of the header, which holds the texts
    if size + 8 > len(body):
        raise BadBody("the body is not in safetensors format: it ends within its header")
    reserve(TEXT_BYTES * size + len(body) - size)
    try:
        tensors = load(body)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadBody(f"the body is not in safetensors format: {error}") from error
    if set(tensors) == {"images"}:
        images = tensors["images"]
        if not _are_images(images) or images.size == 0:
            shape = f"{images.shape} {images.dtype}"
            raise BadBody(f"images must be (B, H, W, 3) uint8 and not empty, not {shape}")
    elif set(tensors) == {"png", "ends"}:
        images = _decode_pngs(tensors["png"], tensors["ends"], max_bytes, reserve)
    else:
        expected = "the tensor `images`, or `png` and `ends`"
        raise BadBody(f"the body must hold {expected}; it holds {sorted(tensors)}")
    header = json.loads(body[8 : 8 + size]).get("__metadata__") or {}
    prompts = _decode_list(header, "prompts", str, "strings")
    metadata = _decode_list(header, "metadata", dict, "objects")
    if not len(images) == len(prompts) == len(metadata):
        texts = f"{len(prompts)} prompts and {len(metadata)} metadata entries"
        raise BadBody(f"{len(images)} images came with {texts}")
    return images, prompts, metadata


def _decode_list(header: dict[str, str], name: str, kind: type, plural: str) -> list[Any]:
    if name not in header:
        raise BadBody(f"the safetensors header has no {name!r} in its __metadata__")
    try:
        values = json.loads(header[name])
    except (ValueError, RecursionError) as error:
        raise BadBody(f"{name!r} in the safetensors header is not JSON: {error}") from error
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise BadBody(f"{name!r} in the safetensors header must be a list of {plural}")
    return values


def _decode_pngs(
    data: np.ndarray, ends: np.ndarray, max_bytes: int, reserve: Callable[[int], None]
) -> np.ndarray:
    vectors = data.ndim == ends.ndim == 1 and ends.size > 0
    if not vectors or data.dtype != np.uint8 or ends.dtype != np.int64:
        raise BadBody("`png` must be (bytes,) uint8 and `ends` (B,) int64 and not empty")
    starts = np.concatenate([[0], ends[:-1]])
    if (ends <= starts).any() or ends[-1] != len(data):
        raise BadBody(f"`ends` must rise from above 0 to {len(data)}, the bytes of `png`")
    files = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    sizes = [_png_size(file[:PNG_HEAD].tobytes(), i) for i, file in enumerate(files)]
    width, height = sizes[0]
    for i, size in enumerate(sizes):
        if size != sizes[0]:
            shapes = f"image {i} is {size[0]} x {size[1]}, image 0 {width} x {height}"
            raise BadBody(f"{shapes}: all must have one size")
    unpacked = len(files) * width * height * 3
    if unpacked > max_bytes:
        each = f"{len(files)} images of {width} x {height}"
        raise BadBody(f"{each} unpack to more than {max_bytes} bytes")
    reserve(unpacked + DECODER_BYTES * width * height)
    images = np.empty((len(files), height, width, 3), np.uint8)
    for i, file in enumerate(files):
        _decode_png(file.tobytes(), i, images[i])
    return images


def _png_size(head: bytes, i: int) -> tuple[int, int]:
    """Width and height that the PNG's header declares. Raises BadBody unless it is 8-bit RGB."""
    if len(head) < PNG_HEAD or not head.startswith(b"\x89PNG\r\n\x1a\n") or head[12:16] != b"IHDR":
        raise BadBody(f"image {i} is not a PNG file that can be read: its header is not one")
    width, height, depth, color = struct.unpack(">IIBB", head[16:PNG_HEAD])
    mode = PNG_MODES.get(color, "unknown")
    if (mode, depth) != ("RGB", 8):
        raise BadBody(f"image {i} must be an 8-bit RGB PNG; its mode is {mode} of {depth} bits")
    return width, height


def _decode_png(data: bytes, i: int, image: np.ndarray) -> None:
    """Unpack image i into (H, W, 3) uint8, whose size its header declares."""
    try:
        file = Image.open(io.BytesIO(data), formats=["PNG"])
        if (file.height, file.width, file.mode) == (*image.shape[:2], "RGB"):
            image[:] = np.asarray(file)
            return
    except Exception as error:  # Pillow does not document which exceptions a broken file raises
        raise BadBody(f"image {i} is not a PNG file that can be read: {error}") from error
    raise BadBody(f"image {i} is not a PNG file that can be read: it has two headers")


def encode_scores(returned: Any, n: int) -> dict[str, Any]:
    """The reply for what a scorer returned for n images. Raises NotScores as `Scores.read` does."""

    def numbers(column: np.ndarray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in column]

    scores = Scores.read(returned, n)
    extras = {name: numbers(column) for name, column in scores.extras.items()}
    return {"score": numbers(scores.score), "extras": extras, "reason": scores.reason}


def decode_scores(reply: Any, n: int) -> Scores:
    """The scores of a reply for n images, the very float32 values sent; null is NaN.

    Raises BadBody.
    """

    def column(values: Any) -> np.ndarray:
        numbers = np.array(values, dtype=np.float32)  # None becomes NaN
        if numbers.shape != (n,):
            raise ValueError(f"it holds values of shape {numbers.shape} for {n} images")
        return numbers

    try:
        extras = {name: column(values) for name, values in reply["extras"].items()}
        return Scores(column(reply["score"]), extras, str(reply.get("reason", "")))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadBody(f"the reply is not one of a reward server: {error}") from error
