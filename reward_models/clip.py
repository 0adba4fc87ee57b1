"""CLIP by transformers or open_clip: unit embeddings of images and prompts, and their cosines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.loading import Source, expanded, has_vocabulary
from reward_models.model import ModelScorer

# The files that transformers reads of a published CLIP; a processor may lack some of its seven.
MODEL_FILES = ("config.json", "model.safetensors")
PROCESSOR_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
PROCESSOR_NEEDED = ("preprocessor_config.json", "tokenizer.json")
CONTEXT = 77  # tokens that a CLIP reads of a prompt
# open_clip's names
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "pure_bf16", torch.float16: "pure_fp16"}


def openai_clip(scorer: str, option: str = "path") -> Source:
    """OpenAI's CLIP ViT-L/14 with its processor."""
    return Source(
        scorer,
        "openai/clip-vit-large-patch14",
        "1.7 GB",
        tuple(dict.fromkeys(MODEL_FILES + PROCESSOR_FILES)),
        option,
        needed=MODEL_FILES + PROCESSOR_NEEDED,
    )


class Clip(ModelScorer):
    """score = scale x cosine. Subclasses provide `weights` and the two towers of the CLIP."""

    weights: ClassVar[Source]
    scale: ClassVar[float] = 1.0

    def embed_images(self, images: Any) -> Tensor:
        """A chunk of images -> (B, D)."""
        raise NotImplementedError

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """A chunk of prompts -> (B, D)."""
        raise NotImplementedError

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        return self.scale * self.cosine(images, prompts)

    def cosine(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        """The cosine of each image with its own prompt, (B,) fp32 in [-1, 1]."""
        return (self.image(images) * self.text(prompts)).sum(-1)

    def image(self, images: Any) -> Tensor:
        """images (B, H, W, 3) uint8 -> unit embeddings (B, D) fp32."""
        return self._embed(self.embed_images, images)

    def text(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (B, D) fp32. Prompts repeat within a group; each is embedded once."""
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self._embed(self.embed_prompts, list(row))[[row[prompt] for prompt in prompts]]

    @torch.inference_mode()
    def _embed(self, tower: Callable[[Any], Tensor], batch: Any) -> Tensor:
        return normalize(torch.cat(self.in_chunks(tower, batch)).float(), dim=-1)


class TransformersClip(Clip):
    """A `transformers.CLIPModel` with its `CLIPProcessor`, from `weights`.

    path, processor_path: a local folder or hub id of each. The processor comes from
    processor_path, else from path if it is a folder with a processor, else from
    `processor_weights`, else from `weights`. model, processor: both, already loaded.
    """

    processor_weights: ClassVar[Source | None] = None

    def __init__(
        self,
        path: str = "",
        processor_path: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        from transformers import AutoProcessor, CLIPModel

        super().__init__(device, dtype, batch_size)
        self.weights.locate(path)
        if processor is None:
            source = self.processor_weights or self.weights
            processor_path = processor_path or (path if _has_processor(path) else "")
            processor = source.reader(AutoProcessor.from_pretrained, processor_path)
        self.processor = processor
        self.hold(self.weights.model(CLIPModel, path, self.dtype) if model is None else model)

    def embed_images(self, images: np.ndarray) -> Tensor:
        pixels = self.pixels(self.processor.image_processor, images)
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        ids, mask = self.tokens(self.processor.tokenizer, prompts, CONTEXT)
        features = self.model.get_text_features(input_ids=ids, attention_mask=mask)
        return features.pooler_output


def _has_processor(path: str) -> bool:
    files, folder = ("preprocessor_config.json", "processor_config.json"), expanded(path)
    pixels = any((folder / file).is_file() for file in files)
    return bool(path) and pixels and has_vocabulary(folder)


class OpenClip(Clip):
    """A CLIP of open_clip with its preprocessing and tokenizer, from `weights`.

    path: the file, a folder with it, or a hub id. architecture: open_clip's name of the model,
    by default the one of the weights. model: (model, preprocess, tokenizer), already loaded.

    Raises ValueError for an architecture that open_clip does not know, and for missing weights or
    those of another model.
    """

    architecture: ClassVar[str]
    # "longest" pads images to a square; None is the architecture's choice, for CLIP a centre crop.
    resize_mode: ClassVar[str | None] = None

    def __init__(
        self,
        path: str = "",
        architecture: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        model: tuple[Any, Any, Any] | None = None,
    ) -> None:
        super().__init__(device, dtype, batch_size)
        clip, self.preprocess, self.tokenizer = model or self._load(
            path, architecture or self.architecture
        )
        self.hold(clip)

    def _load(self, path: str, architecture: str) -> tuple[Any, Any, Any]:
        scorer = self.weights.scorer
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(f"{scorer} needs open_clip: pip install open_clip_torch") from error
        if architecture not in open_clip.list_models():
            known = "see open_clip.list_models()"
            raise ValueError(f"{scorer}: open_clip has no model {architecture!r}; {known}")
        file = str(self.weights.find(path))
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                architecture,
                pretrained=file,
                precision=_PRECISIONS[self.dtype],
                image_resize_mode=self.resize_mode,
            )
        except Exception as error:  # open_clip passes on whatever torch or safetensors raise
            reason = ValueError(f"open_clip cannot read them as a {architecture}: {error}")
            raise self.weights.unreadable(file, reason) from error
        return model, preprocess, open_clip.get_tokenizer(architecture)

    def embed_images(self, images: Sequence[Any]) -> Tensor:
        """Images as arrays, or as PIL images of any size."""
        from PIL import Image

        pictures = (i if isinstance(i, Image.Image) else Image.fromarray(i) for i in images)
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        return self.model.encode_image(pixels.to(self.device, self.dtype))

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(prompts).to(self.device))
