"""What the scorers with a torch model share: device, dtype, batches, preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reward_models.base import Metadata, Scores

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """Holds a torch model for inference. Subclasses call `__init__`, load, and then call `hold`.

    device: auto (CUDA if available), cpu, cuda or cuda:1. dtype: float32, bfloat16 or float16.
    batch_size: inputs that go through the model at once. Raises ValueError for any other.
    """

    model: Any

    def __init__(self, device: str, dtype: str, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be a whole number of at least 1")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype = {dtype!r} is not one of {', '.join(_DTYPES)}")
        self.batch_size, self.dtype = batch_size, _DTYPES[dtype]
        self.device = pick_device(device)

    def hold(self, model: Any) -> None:
        """Move `model`, in eval mode and without gradients, to the device."""
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.dtype = next(model.parameters()).dtype  # one loaded elsewhere may have another

    def to(self, device: str | torch.device) -> Self:
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def in_chunks(self, function: Callable[..., T], *batches: Any) -> list[T]:
        """`function` of the first `batch_size` inputs of each batch, of the next, and so on."""
        starts = range(0, len(batches[0]), self.batch_size)
        parts = (slice(start, start + self.batch_size) for start in starts)
        return [function(*(batch[part] for batch in batches)) for part in parts]

    def pixels(self, processor: Any, images: np.ndarray) -> Tensor:
        """images (B, H, W, 3) uint8 through a processor of transformers -> (B, 3, h, w)."""
        pixels = processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.dtype)

    def tokens(self, tokenizer: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (B, length) each.

        All are padded to the same length, so that a score does not depend on the longest prompt of
        the batch.
        """
        tokens = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        return tokens["input_ids"], tokens["attention_mask"]


class ModelScorer(Model):
    """A scorer that computes `score` with its model."""

    def score(self, images: np.ndarray, prompts: list[str]) -> Tensor:
        """images (B, H, W, 3) uint8, at least one, and their prompts -> (B,) fp32."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Scores:
        if len(images) == 0:
            return Scores(np.zeros(0, np.float32))
        return Scores(self.score(images, prompts).cpu().numpy())


def pick_device(name: str) -> torch.device:
    """Raises ValueError for a name that torch does not know, and for CUDA without a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device = {name!r} is not a device: use auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {name!r}, but torch sees no CUDA here: use auto or cpu")
    return device
