"""GenEval's two models: a Mask2Former that finds objects, and a CLIP that names the colour of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from reward_models.clip import OpenClip
from reward_models.geneval_logic import CLASSES, COLORS, THRESHOLD, Detection
from reward_models.loading import Source, check_batch_size, chunks, pick_device, pick_dtype

WEIGHTS = Source(
    "geneval",
    "facebook/mask2former-swin-small-coco-instance",
    "280 MB",
    files=("config.json", "model.safetensors", "preprocessor_config.json"),
)
SIDE, LONGEST = (
    800,
    1333,
)  # pixels: mmdet enlarges the shorter side to the one, the longer side to the other at most
STRIDE = 32  # pixels of the image to one of the coarsest features; mmdet pads to whole ones
TOP = 100  # pairs of query and class that mmdet keeps of an image
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GROUND = "#999"  # what a crop shows around the object


class Frame(NamedTuple):
    """What the model looks at, (height, width) of it: padded, and shown, the upper left part that is the image."""

    padded: tuple[int, int]
    shown: tuple[int, int]


class Mask2FormerDetector:
    """images -> detections, by a transformers Mask2Former for COCO instances and its image processor."""

    def __init__(
        self, model: Any, processor: Any, device: str = "auto", batch_size: int = 8
    ) -> None:
        labels = model.config.num_labels
        if labels != len(CLASSES):
            raise ValueError(
                f"geneval: the detector knows {labels} classes, not COCO's {len(CLASSES)} instance classes; use "
                f"{WEIGHTS.repo} or one trained on the same"
            )
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.batch_size = check_batch_size(batch_size)
        self.to(pick_device(device))

    def to(self, device: str | torch.device) -> Mask2FormerDetector:
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def __call__(self, images: np.ndarray) -> list[list[Detection]]:
        """images (B, H, W, 3) uint8 RGB -> for each, the detections scored above THRESHOLD."""
        return [
            d for part in chunks(len(images), self.batch_size) for d in self._chunk(images[part])
        ]

    @torch.inference_mode()
    def _chunk(self, images: np.ndarray) -> list[list[Detection]]:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        h, w = pixels.shape[2:]
        pixels = pad(pixels, (0, -w % STRIDE, 0, -h % STRIDE))
        output = self.model(pixel_values=pixels.to(self.device, self.model.dtype))
        frame = Frame((pixels.shape[2], pixels.shape[3]), (h, w))
        size = (images.shape[1], images.shape[2])
        pairs = zip(
            output.class_queries_logits.float(), output.masks_queries_logits.float(), strict=True
        )
        return [detections(classes, masks, size, frame) for classes, masks in pairs]


def load_detector(
    path: str = "",
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 8,
    side: int = SIDE,
) -> Mask2FormerDetector:
    """side: pixels that the shorter side of an image is brought to before the model looks.

    Raises ValueError where scipy or the weights are missing.
    """
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    torch_dtype = pick_dtype(dtype)
    check_batch_size(batch_size)
    pick_device(device)
    if isinstance(side, bool) or not isinstance(side, int) or side < STRIDE:
        raise ValueError(
            f"geneval: side = {side!r} must be a whole number of at least {STRIDE} pixels"
        )
    # The checkpoint's own processor makes squares of 384 pixels, and where told sides would stretch to whole strides.
    size = {"shortest_edge": side, "longest_edge": round(side * LONGEST / SIDE)}
    load = partial(AutoImageProcessor.from_pretrained, size=size, size_divisor=0)
    processor = WEIGHTS.pretrained(load, path)
    # transformers 5 gives the backbone a last norm that older checkpoints lack and the pixel decoder never reads.
    unused = ("model.pixel_level_module.encoder.swin.layernorm.",)
    model = WEIGHTS.model(Mask2FormerForUniversalSegmentation, path, torch_dtype, unused)
    return Mask2FormerDetector(model, processor, device, batch_size)


def detections(
    classes: Tensor, masks: Tensor, size: tuple[int, int], frame: Frame | None = None
) -> list[Detection]:
    """One image's detections scored above THRESHOLD, as mmdet makes them of Mask2Former's output.

    classes (Q, C + 1), logits whose last column is "no object"; masks (Q, h, w), logits; size (H, W) of the image;
    frame: what the masks cover, the image alone if None. Class probabilities are a softmax over all columns; the TOP
    pairs of query and class go on; a mask is where its logit, brought to the image's size, exceeds 0; the score is the
    class probability x the mean sigmoid in the mask.
    """
    probability = classes.softmax(-1)[:, :-1]
    top = probability.flatten().topk(min(TOP, probability.numel()))
    # The mask's factor is below 1: a pair that does not pass by its class alone never will, and its mask is not needed.
    kept = top.values > THRESHOLD
    chances, index = top.values[kept], top.indices[kept]
    if len(index) == 0:
        return []
    queries, labels = index // probability.shape[1], index % probability.shape[1]
    logits = masks[queries][None]
    if frame:
        h, w = frame.shown
        logits = interpolate(logits, size=frame.padded, mode="bilinear", align_corners=False)[
            ..., :h, :w
        ]
    logits = interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    sure = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    found = zip(labels.tolist(), (chances * sure).tolist(), inside.cpu().numpy(), strict=True)
    return [
        Detection(label, score, extents(mask), mask)
        for label, score, mask in found
        if score > THRESHOLD
    ]


def extents(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) around the True pixels of mask (H, W), x1 and y1 one beyond the last; some pixel is True."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ColorClassifier:
    """Zero-shot colours by CLIP: each of COLORS is the mean of three templates that name the object's class."""

    def __init__(self, clip: OpenClip) -> None:
        self.clip = clip
        self._texts: dict[int, Tensor] = {}

    def to(self, device: str | torch.device) -> ColorClassifier:
        self.clip.to(device)
        self._texts = {label: text.to(device) for label, text in self._texts.items()}
        return self

    def __call__(self, images: Sequence[np.ndarray], objects: Sequence[Detection]) -> list[str]:
        """The colour of each object, in the image (H, W, 3) uint8 of the same index."""
        if not objects:
            return []
        seen = self.clip.crops(
            [crop(image, found) for image, found in zip(images, objects, strict=True)]
        )
        named = torch.stack([self._text(found.label) for found in objects])
        return [COLORS[i] for i in torch.einsum("nd,ncd->nc", seen, named).argmax(-1).tolist()]

    def _text(self, label: int) -> Tensor:
        """(10, D) unit vectors, one a colour."""
        if label not in self._texts:
            prompts = [
                t.format(color=color, name=CLASSES[label]) for color in COLORS for t in TEMPLATES
            ]
            embedded = self.clip.text(prompts).view(len(COLORS), len(TEMPLATES), -1)
            self._texts[label] = normalize(embedded.mean(1), dim=-1)
        return self._texts[label]


def crop(image: np.ndarray, found: Detection) -> Any:
    """The object as a PIL image: the box, with GROUND wherever its mask is not."""
    from PIL import Image

    whole = Image.fromarray(image)
    if found.mask is not None:
        ground = Image.new("RGB", whole.size, GROUND)
        whole = Image.composite(whole, ground, Image.fromarray(found.mask))
    x0, y0, x1, y1 = (round(edge) for edge in found.box)
    return whole.crop((x0, y0, x1, y1))
