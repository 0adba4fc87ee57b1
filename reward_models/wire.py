"""What travels between the reward client and server: one safetensors body a request, JSON back. Nothing is unpickled.

Request: tensor `images` (B, H, W, 3) uint8; or, for slow networks, `png` (bytes,) uint8, B PNG files one after the
other, with `ends` (B,) int64, where each file ends. The safetensors header's __metadata__ holds, as JSON, `prompts`, a
list of B strings, and `metadata`, a list of B objects.
Reply: {"score": [B numbers], "extras": {name: [B numbers]}}, null for what is not finite.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from reward_models.base import Metadata, Scores

MEBIBYTE = 2**20


class BadBody(ValueError):
    """What was sent is not what this module describes; the message says where it departs."""


def encode_png(image: np.ndarray) -> bytes:
    """One image (H, W, 3) uint8 as a PNG file, packed fast rather than small."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def encode(
    images: np.ndarray, prompts: list[str], metadata: list[Metadata], *, png: bool = False
) -> bytes:
    """The body for images (B, H, W, 3) uint8. Raises TypeError for other arrays or metadata that JSON cannot hold."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise TypeError(f"images must be (B, H, W, 3) uint8, not {images.shape} {images.dtype}")
    if png:
        files = [encode_png(image) for image in images]
        tensors = {
            "png": np.frombuffer(b"".join(files), np.uint8),
            "ends": np.cumsum([len(file) for file in files]),
        }
    else:
        tensors = {"images": np.ascontiguousarray(images)}
    return save(
        tensors, metadata={"prompts": json.dumps(prompts), "metadata": json.dumps(metadata)}
    )


def decode(body: bytes, max_bytes: int) -> tuple[np.ndarray, list[str], list[Metadata]]:
    """Images (B, H, W, 3) uint8, prompts and metadata of a body; raises BadBody.

    max_bytes bounds the unpacked images: a PNG of a few kilobytes can claim gigabytes.
    """
    try:
        tensors = load(body)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadBody(f"the body is not in safetensors format: {error}") from error
    if set(tensors) == {"images"}:
        images = tensors["images"]
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[-1] != 3
            or images.size == 0
        ):
            raise BadBody(
                f"images must be (B, H, W, 3) uint8 and not empty, not {images.shape} {images.dtype}"
            )
    elif set(tensors) == {"png", "ends"}:
        images = _decode_pngs(tensors["png"], tensors["ends"], max_bytes)
    else:
        raise BadBody(
            f"the body must hold the tensor `images`, or `png` and `ends`; it holds {sorted(tensors)}"
        )
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])  # load() has checked it
    prompts, metadata = (
        _strings_or_objects(header, *kind) for kind in (("prompts", str), ("metadata", dict))
    )
    if not len(images) == len(prompts) == len(metadata):
        raise BadBody(
            f"{len(images)} images came with {len(prompts)} prompts and {len(metadata)} metadata entries"
        )
    return images, prompts, metadata


def _strings_or_objects(header: dict[str, Any], name: str, kind: type) -> list[Any]:
    text = (header.get("__metadata__") or {}).get(name)
    if text is None:
        raise BadBody(f"the safetensors header has no {name!r} in its __metadata__")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"{name!r} in the safetensors header is not JSON: {error}") from error
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise BadBody(
            f"{name!r} in the safetensors header must be a list of {'strings' if kind is str else 'objects'}"
        )
    return values


def _decode_pngs(data: np.ndarray, ends: np.ndarray, max_bytes: int) -> np.ndarray:
    if (
        data.dtype != np.uint8
        or data.ndim != 1
        or ends.dtype != np.int64
        or ends.ndim != 1
        or ends.size == 0
    ):
        raise BadBody("`png` must be (bytes,) uint8 and `ends` (B,) int64 and not empty")
    starts = np.concatenate([[0], ends[:-1]])
    if (ends <= starts).any() or ends[-1] != len(data):
        raise BadBody(f"`ends` must rise from above 0 to {len(data)}, the bytes of `png`")
    raw = data.tobytes()
    images: list[np.ndarray] = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        try:
            file = Image.open(io.BytesIO(raw[start:end]), formats=["PNG"])
            if file.width * file.height * 3 * len(ends) > max_bytes:
                raise BadBody(
                    f"{len(ends)} images of {file.width} x {file.height} unpack to more than {max_bytes} bytes"
                )
            image = np.array(file)
        except BadBody:
            raise
        except Exception as error:  # Pillow promises no closed set of exceptions for a broken file
            raise BadBody(f"image {i} is not a PNG file that can be read: {error}") from error
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise BadBody(f"image {i} must be an 8-bit RGB PNG; its mode is {file.mode}")
        if images and image.shape != images[0].shape:
            raise BadBody(
                f"image {i} is {image.shape}, image 0 {images[0].shape}: all must have one size"
            )
        images.append(image)
    return np.stack(images)


def encode_scores(scores: Scores, n: int) -> dict[str, Any]:
    """The reply for n images. Raises TypeError when the scorer did not give n numbers; that is a fault of its code."""

    def numbers(name: str, values: Any) -> list[float | None]:
        column = np.asarray(values, dtype=np.float32)
        if column.shape != (n,):
            raise TypeError(f"the scorer gave {name} of shape {column.shape} for {n} images")
        return [float(value) if np.isfinite(value) else None for value in column]

    extras = {
        name: numbers(f"the extra {name!r}", values) for name, values in scores.extras.items()
    }
    return {"score": numbers("a score", scores.score), "extras": extras}


def decode_scores(reply: Any, n: int) -> Scores:
    """The scores of a reply for n images: exactly the float32 values that were sent, null as NaN. Raises BadBody."""

    def column(values: Any) -> np.ndarray:
        numbers = np.array(values, dtype=np.float32)  # None becomes NaN
        if numbers.shape != (n,):
            raise BadBody(f"the reply holds values of shape {numbers.shape} for {n} images")
        return numbers

    try:
        return Scores(
            column(reply["score"]),
            {name: column(values) for name, values in reply["extras"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadBody(f"the reply is not one of a reward server: {error}") from error
