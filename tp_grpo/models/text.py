"""Prompts to conditions: each distinct prompt once, by encoders that visit the device to work.

A condition is a frozen dataclass of tensors of leading dim B. Where prompts differ in length its
class names the fields of (B, tokens, ..) in `ragged`, and has `lengths` (B,), how many tokens are a
prompt's own: the first ones. The others are padding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tp_grpo.store import files
from tp_grpo.types import cat, index, to


@dataclasses.dataclass(frozen=True)
class RaggedCond:
    """embeds (B, tokens, D); lengths (B,) int64, in host memory: a prompt's own tokens."""

    ragged: ClassVar = ("embeds",)
    host: ClassVar = ("lengths",)
    embeds: Tensor
    lengths: Tensor

    @classmethod
    def random(cls, rows: int, tokens: int, width: int, **options: Any) -> RaggedCond:
        return cls(torch.randn(rows, tokens, width, **options), torch.full((rows,), tokens))


def chat(pipeline: Any, prompt: str, *, thinking: bool) -> str:
    """A prompt in the template of the pipeline's language model."""
    text: str = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return text


def check_cache(folder: str) -> None:
    """Raises ValueError for a `model.embeddings_cache` that no prompt could be written to.

    One with embeddings may be read-only: it can hold all prompts.
    """
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not os.path.isdir(nearest):
        reason = f"{nearest} is no folder"
    elif any(path.glob("*/*.safetensors")):
        return
    else:
        try:
            with tempfile.TemporaryFile(dir=nearest):
                return
        except OSError as error:
            reason = f"{nearest} cannot be written ({error.strerror})"
    raise ValueError(f"model.embeddings_cache = {folder!r}: {reason}; name another folder")


class EmbeddingCache:
    """Conditions on disk, one file a prompt, named by a hash of all that determines it."""

    def __init__(self, folder: Path, origin: Sequence[str], kind: type) -> None:
        self.folder, self.origin, self.kind = folder, list(origin), kind

    def load(self, prompt: str) -> Any | None:
        """The condition (leading dim 1); None if it is missing or, with a warning, damaged."""
        path = self._path(prompt)
        try:
            return self.kind(**load_file(path)) if path.is_file() else None
        except (OSError, SafetensorError, TypeError) as error:
            warnings.warn(f"{path} is damaged ({error}); the prompt is encoded again", stacklevel=2)
            return None

    def save(self, prompt: str, cond: Any) -> None:
        """Raises OSError with the file and the setting where the folder cannot be written to."""
        path = self._path(prompt)
        draft = path.with_suffix(f".{os.getpid()}")  # ranks may write the same prompt
        fields = {f.name: getattr(cond, f.name).contiguous() for f in dataclasses.fields(cond)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(fields, draft)
            files.share(draft)
            draft.rename(path)
        except (OSError, SafetensorError) as error:
            known = error if isinstance(error, OSError) else files.os_error(error, path)
            if known is None:
                raise
            reason = f"cannot be written ({known.strerror}); name another model.embeddings_cache"
            raise OSError(known.errno, reason, str(path)) from error

    def _path(self, prompt: str) -> Path:
        name = hashlib.sha256(json.dumps([self.origin, prompt]).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


class TextEncoders:
    """The text half of a pipeline.

    mode: `offload` keeps the encoders in host memory between calls, `resident` on the device;
    `drop` frees them after each call and reloads them only for a prompt that the cache lacks.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        encode: Callable[[Any, list[str], torch.device], Any],
        cut: Callable[[Any, list[str]], list[int]],
        *,
        parts: Sequence[str],
        chunk: int,
        mode: str,
        device: torch.device,
        cache: EmbeddingCache | None,
    ) -> None:
        """cut: the lengths in tokens of those prompts that are too long and lose their end.

        chunk: prompts in every call; kernels round by shape, others would change embeddings.
        """
        self.load, self.encode, self.parts, self.chunk = load, encode, parts, chunk
        self.cut, self._warned = cut, False
        self.mode, self.device, self.cache = mode, device, cache
        self._pipeline: Any = None

    def __call__(self, prompts: Sequence[str]) -> Any:
        """The conditions (leading dim B), in host memory; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        known = {prompt: cond for prompt in distinct if (cond := self._cached(prompt)) is not None}
        known |= self._encode([prompt for prompt in distinct if prompt not in known])
        return cat([known[prompt] for prompt in prompts])

    def fill(self, prompts: Sequence[str]) -> None:
        """Encode the prompts that the cache lacks, without keeping anything in memory."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if self._cached(prompt) is None]
        self._encode(missing, keep=False)

    def _cached(self, prompt: str) -> Any | None:
        return self.cache.load(prompt) if self.cache else None

    @torch.no_grad()
    def _encode(self, prompts: list[str], *, keep: bool = True) -> dict[str, Any]:
        conditions: dict[str, Any] = {}
        if not prompts:
            return conditions
        with self._working() as pipeline:
            self._warn(self.cut(pipeline, prompts), sum(map(bool, prompts)))
            for start in range(0, len(prompts), self.chunk):
                part = prompts[start : start + self.chunk]
                full = part + part[-1:] * (self.chunk - len(part))
                encoded = to(self.encode(pipeline, full, self.device), "cpu")
                for i, prompt in enumerate(part):
                    cond = trimmed(index(encoded, slice(i, i + 1)))
                    if self.cache:
                        self.cache.save(prompt, cond)
                    if keep:
                        conditions[prompt] = cond
        return conditions

    def _warn(self, lengths: list[int], count: int) -> None:
        """Once: prompts of these lengths, of so many, are cut."""
        if lengths and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(lengths)} of {count} prompts are longer than model.max_sequence_length, the "
                f"longest has {max(lengths)} tokens: their ends are not read",
                stacklevel=2,
            )

    @contextmanager
    def _working(self) -> Iterator[Any]:
        """Inside, the encoders are on the device; afterwards where `mode` wants them."""
        if self._pipeline is None:
            self._pipeline = self.load()
        self._move(self.device)
        try:
            yield self._pipeline
        finally:
            if self.mode == "offload":
                self._move(torch.device("cpu"))
            elif self.mode == "drop":
                self._pipeline = None
            if self.mode != "resident" and self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _move(self, device: torch.device) -> None:
        for name in self.parts:
            part = getattr(self._pipeline, name, None)
            if isinstance(part, nn.Module):
                part.to(device)


def trimmed(cond: Any) -> Any:
    """The condition of one prompt without the padding that others beside it needed."""
    ragged = getattr(cond, "ragged", ())
    if not ragged:
        return cond
    length = int(cond.lengths)
    return dataclasses.replace(cond, **{name: getattr(cond, name)[:, :length] for name in ragged})
