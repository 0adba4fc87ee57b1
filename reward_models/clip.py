"""CLIP towers behind one face: unit embeddings of images and prompts, and their cosine, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.loading import Source, check_batch_size, chunks, pick_device, pick_dtype

# What transformers reads of a published CLIP: of its processor, of the model; and what it cannot do without.
PROCESSOR_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
MODEL_FILES = ("config.json", "model.safetensors")
PROCESSOR_NEEDS = ("preprocessor_config.json", "tokenizer.json")
_PRECISIONS = {
    "float32": "fp32",
    "bfloat16": "pure_bf16",
    "float16": "pure_fp16",
}  # open_clip's names
CONTEXT = 77  # tokens that a CLIP text tower reads; the rest of a prompt is cut


class Clip:
    """The base of both: `_image` and `_text` of one chunk are theirs."""

    def __init__(self, model: Any, device: str, batch_size: int) -> None:
        self.batch_size = check_batch_size(batch_size)
        self.model = model.eval().requires_grad_(False)
        self.to(pick_device(device))

    def to(self, device: str | torch.device) -> Clip:
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    @torch.inference_mode()
    def image(self, images: np.ndarray) -> Tensor:
        """images (B, H, W, 3) uint8 -> unit embeddings (B, D) fp32."""
        return self._embed(self._image, images)

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (B, D) fp32; a prompt that repeats, as in a group, is embedded once."""
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self._embed(self._text, list(row))[[row[prompt] for prompt in prompts]]

    def cosine(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
        """Of each image with its own prompt, (B,) fp32 in [-1, 1]."""
        if len(images) == 0:
            return np.zeros(0, dtype=np.float32)
        return (self.image(images) * self.text(prompts)).sum(-1).cpu().numpy()

    def _embed(self, tower: Callable[[Any], Tensor], batch: Any) -> Tensor:
        parts = [tower(batch[part]) for part in chunks(len(batch), self.batch_size)]
        return normalize(torch.cat(parts).float(), dim=-1)

    def _image(self, images: np.ndarray) -> Tensor:
        raise NotImplementedError

    def _text(self, prompts: list[str]) -> Tensor:
        raise NotImplementedError


class TransformersClip(Clip):
    """A `transformers.CLIPModel` and its `CLIPProcessor`."""

    def __init__(
        self, model: Any, processor: Any, device: str = "auto", batch_size: int = 16
    ) -> None:
        self.processor = processor
        super().__init__(model, device, batch_size)

    def _image(self, images: np.ndarray) -> Tensor:
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return _features(
            self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype))
        )

    def _text(self, prompts: list[str]) -> Tensor:
        # Padded to the full length whatever the batch, so that a score does not depend on the batch's longest prompt.
        tokens = self.processor.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).to(self.device)
        return _features(
            self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        )


def _features(output: Any) -> Tensor:
    """transformers 5 returns the projected embedding as the `pooler_output` of an object; 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_clip(
    weights: Source,
    processor_source: Source | None = None,
    *,
    path: str = "",
    processor_path: str = "",
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 16,
    model: Any = None,
    processor: Any = None,
) -> TransformersClip:
    """A CLIPModel and processor, loaded where they are not given.

    The processor comes from `processor_path`, else from the folder `path` where it holds one, else from
    processor_source (default: the weights' own repository).
    """
    from transformers import AutoProcessor, CLIPModel

    torch_dtype = pick_dtype(dtype)
    check_batch_size(batch_size)
    pick_device(device)
    weights.locate(path)
    if processor is None:
        processor_path = processor_path or (path if _holds_processor(path) else "")
        processor = (processor_source or weights).pretrained(
            AutoProcessor.from_pretrained, processor_path
        )
    if model is None:
        model = weights.model(CLIPModel, path, torch_dtype)
    return TransformersClip(model, processor, device, batch_size)


def _holds_processor(path: str) -> bool:
    folder = Path(path).expanduser()
    return bool(path) and any(
        (folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    )


class OpenClip(Clip):
    """An open_clip model with its preprocessing (of one PIL image) and tokenizer."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: str = "auto",
        batch_size: int = 16,
    ) -> None:
        self.preprocess, self.tokenizer = preprocess, tokenizer
        super().__init__(model, device, batch_size)

    @torch.inference_mode()
    def crops(self, images: list[Any]) -> Tensor:
        """PIL images of any size -> unit embeddings (B, D) fp32."""
        return self._embed(self._pil, images)

    def _image(self, images: np.ndarray) -> Tensor:
        from PIL import Image

        return self._pil([Image.fromarray(image) for image in images])

    def _pil(self, images: list[Any]) -> Tensor:
        pixels = torch.stack([self.preprocess(image) for image in images])
        dtype = next(self.model.parameters()).dtype
        return self.model.encode_image(pixels.to(self.device, dtype))

    def _text(self, prompts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(prompts).to(self.device))


def load_open_clip(
    source: Source,
    architecture: str,
    *,
    path: str = "",
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 16,
    resize_mode: str | None = None,
) -> OpenClip:
    """open_clip's `architecture` with the weights of `source` or the file `path`.

    resize_mode: "longest" fits the whole image and pads; None is the architecture's own, a centre crop for CLIP.
    Raises ValueError for an architecture that open_clip does not know, and for missing or foreign weights.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"{source.scorer} needs open_clip: pip install open_clip_torch") from error
    if architecture not in open_clip.list_models():
        raise ValueError(
            f"{source.scorer}: open_clip has no model {architecture!r}; see open_clip.list_models()"
        )
    pick_dtype(dtype)
    check_batch_size(batch_size)
    pick_device(device)
    file = str(source.find(path))
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=file,
            precision=_PRECISIONS[dtype],
            image_resize_mode=resize_mode,
        )
    except Exception as error:  # open_clip lets whatever torch, pickle or safetensors raise through
        raise source.missing(
            file, f"open_clip cannot read them as a {architecture}: {error}"
        ) from error
    return OpenClip(model, preprocess, open_clip.get_tokenizer(architecture), device, batch_size)
