"""GenEval's two models: a Mask2Former that finds objects, a CLIP that names their colours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from reward_models.clip import OpenClip
from reward_models.geneval_logic import CLASSES, COLORS, THRESHOLD, Detection
from reward_models.loading import Source
from reward_models.model import Model

if TYPE_CHECKING:
    from typing_extensions import Self

# mmdet scales the shorter side of an image to SIDE pixels, the longer side to LONGEST at most.
SIDE, LONGEST = 800, 1333
STRIDE = 32  # pixels per coarsest feature; mmdet pads images to a multiple of it
TOP = 100  # pairs of query and class that mmdet keeps of an image
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
BACKGROUND = "#999"  # replaces what surrounds an object


class Frame(NamedTuple):
    """(height, width) of the padded image, and of its upper left part that shows the image."""

    padded: tuple[int, int]
    shown: tuple[int, int]


class Mask2FormerDetector(Model):
    """images -> detections, by a Mask2Former of transformers for COCO instances.

    path: a local folder or hub id. side: pixels to which the shorter side of an image is resized.
    Raises ValueError for missing weights, and for a model of other classes than COCO's.
    """

    weights = Source(
        "geneval",
        "facebook/mask2former-swin-small-coco-instance",
        "280 MB",
        ("config.json", "model.safetensors", "preprocessor_config.json"),
    )

    def __init__(
        self,
        path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 8,
        side: int = SIDE,
    ) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        super().__init__(device, dtype, batch_size)
        if side < STRIDE:
            raise ValueError(
                f"geneval: side = {side} must be a whole number of at least {STRIDE} pixels"
            )
        # By default the checkpoint's processor makes squares of 384 pixels; for other sizes it
        # stretches the image to a multiple of the stride.
        size = {"shortest_edge": side, "longest_edge": round(side * LONGEST / SIDE)}
        load = partial(AutoImageProcessor.from_pretrained, size=size, size_divisor=0)
        self.processor = self.weights.pretrained(load, path)
        # transformers 5 adds to the backbone a norm that older checkpoints lack and nothing reads.
        unused = ("model.pixel_level_module.encoder.swin.layernorm.",)
        model = self.weights.model(Mask2FormerForUniversalSegmentation, path, self.dtype, unused)
        if model.config.num_labels != len(CLASSES):
            raise ValueError(
                f"geneval: the detector knows {model.config.num_labels} classes, not COCO's "
                f"{len(CLASSES)} instance classes; use {self.weights.repo} or one trained on them"
            )
        self.hold(model)

    def __call__(self, images: np.ndarray) -> list[list[Detection]]:
        """images (B, H, W, 3) uint8 RGB -> for each, its detections scored above THRESHOLD."""
        return [image for part in self.in_chunks(self._chunk, images) for image in part]

    @torch.inference_mode()
    def _chunk(self, images: np.ndarray) -> list[list[Detection]]:
        pixels = self.pixels(self.processor, images)
        h, w = pixels.shape[2:]
        pixels = pad(pixels, (0, -w % STRIDE, 0, -h % STRIDE))
        output = self.model(pixel_values=pixels)
        frame = Frame((pixels.shape[2], pixels.shape[3]), (h, w))
        size = (images.shape[1], images.shape[2])
        logits = output.class_queries_logits.float(), output.masks_queries_logits.float()
        return [detections(*pair, size, frame) for pair in zip(*logits, strict=True)]


def detections(
    classes: Tensor, masks: Tensor, size: tuple[int, int], frame: Frame | None = None
) -> list[Detection]:
    """One image's detections scored above THRESHOLD, as mmdet derives them from Mask2Former.

    classes: (Q, C + 1) logits, the last column for "no object". masks: (Q, h, w) logits.
    size: (H, W) of the image. frame: what the masks cover; None for the image alone.

    Class probabilities are a softmax over all columns; the TOP pairs of query and class are kept.
    A mask is where its logit, resized to the image, exceeds 0; the score is the class probability
    times the mean sigmoid within the mask.
    """
    from torchvision.ops import masks_to_boxes

    probability = classes.softmax(-1)[:, :-1]
    top = probability.flatten().topk(min(TOP, probability.numel()))
    # The factor from the mask is below 1, so pairs below the threshold need no mask.
    kept = top.values > THRESHOLD
    probabilities, index = top.values[kept], top.indices[kept]
    if len(index) == 0:
        return []
    queries, labels = index // probability.shape[1], index % probability.shape[1]
    resize = partial(interpolate, mode="bilinear", align_corners=False)
    logits = masks[queries][None]
    if frame:
        h, w = frame.shown
        logits = resize(logits, size=frame.padded)[..., :h, :w]
    logits = resize(logits, size=size)[0]
    inside = logits > 0
    certainty = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    scores = (probabilities * certainty).double()
    kept = scores > THRESHOLD
    boxes = masks_to_boxes(inside[kept])
    boxes[:, 2:] += 1  # torchvision's x1 and y1 are inclusive
    columns = labels[kept].tolist(), scores[kept].tolist(), boxes.tolist(), inside[kept].cpu()
    return [
        Detection(label, score, tuple(box), mask.numpy())
        for label, score, box, mask in zip(*columns, strict=True)
    ]


class ColorClip(OpenClip):
    """OpenAI's CLIP ViT-L/14, as GenEval uses it."""

    weights = Source(
        "geneval",
        "timm/vit_large_patch14_clip_224.openai",
        "1.7 GB",
        ("open_clip_model.safetensors",),
        option="color_path",
    )
    architecture = "ViT-L-14-quickgelu"


class ColorClassifier:
    """Zero-shot colours by CLIP: the text of each colour is the mean of three templates."""

    def __init__(self, clip: OpenClip) -> None:
        self.clip = clip
        self._texts: dict[int, Tensor] = {}

    def to(self, device: str | torch.device) -> Self:
        self.clip.to(device)
        self._texts = {label: text.to(device) for label, text in self._texts.items()}
        return self

    def __call__(self, images: Sequence[np.ndarray], objects: Sequence[Detection]) -> list[str]:
        """The colour of each object, in the image (H, W, 3) uint8 of the same index."""
        if not objects:
            return []
        crops = self.clip.image([crop(*pair) for pair in zip(images, objects, strict=True)])
        texts = torch.stack([self._text(detection.label) for detection in objects])
        return [COLORS[i] for i in torch.einsum("nd,ncd->nc", crops, texts).argmax(-1).tolist()]

    def _text(self, label: int) -> Tensor:
        """(10, D) unit vectors, one for each colour."""
        if label not in self._texts:
            prompts = [
                template.format(color=color, name=CLASSES[label])
                for color in COLORS
                for template in TEMPLATES
            ]
            embedded = self.clip.text(prompts).view(len(COLORS), len(TEMPLATES), -1)
            self._texts[label] = normalize(embedded.mean(1), dim=-1)
        return self._texts[label]


def crop(image: np.ndarray, detection: Detection) -> Any:
    """The box of the object as a PIL image, with BACKGROUND outside its mask."""
    from PIL import Image

    picture = Image.fromarray(image)
    if detection.mask is not None:
        background = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, background, Image.fromarray(detection.mask))
    x0, y0, x1, y1 = (round(edge) for edge in detection.box)
    return picture.crop((x0, y0, x1, y1))
