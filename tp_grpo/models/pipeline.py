"""What every diffusers pipeline shares as a backbone: loading within limits, decoding, exporting.

A backbone adds the conditions, the schedule and the velocity of its family (`sd3.py`, `flux.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
)
from torch import Tensor, nn

from tp_grpo.models import base, export, pretrained
from tp_grpo.models.policy import Policy
from tp_grpo.models.text import EmbeddingCache, TextEncoders
from tp_grpo.settings import ModelSettings


class PipelineBackbone:
    """Transformer and VAE on the device; the text encoders come when there is something to encode."""

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    text_parts: ClassVar[tuple[str, ...]]  # encoders and tokenizers
    takes_attention_backend: ClassVar[bool]
    lora_targets: tuple[str, ...]
    cond_class: ClassVar[type]
    latent_shape: tuple[int, ...]

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: TextEncoders
    ) -> None:
        self.pipeline, self.device, self.text = pipeline, device, encoders
        self.transformer: nn.Module = pipeline.transformer
        self.path = model.path
        self.decode_batch_size = model.decode_batch_size

    @classmethod
    def load(cls, model: ModelSettings, device: torch.device) -> Any:
        """The checkpoint that `config.model` names. Raises ValueError before weights load; see `base.load`."""
        _check_options(cls, model)
        configs = pretrained.read_configs(model.path, model.revision, cls.pipeline_class.__name__)
        cls.check_config(model, **configs)
        folder = pretrained.fetch(cls.pipeline_class, model.path, model.revision)
        pipeline: Any = cls.pipeline_class.from_pretrained(
            folder,
            torch_dtype={"default": base.DTYPES[model.dtype], "vae": base.DTYPES[model.vae_dtype]},
            **dict.fromkeys(cls.text_parts),
        )
        for module in (pipeline.transformer, pipeline.vae):
            module.requires_grad_(False).eval().to(device)
        apply_options(pipeline.transformer, model)
        return cls(pipeline, model, device, cls._text(folder, pipeline, model, device))

    @classmethod
    def check_config(
        cls, model: ModelSettings, *, transformer: dict[str, Any], vae: dict[str, Any]
    ) -> None:
        """Raises ValueError for a `config.model` that this checkpoint, by its configs, cannot serve."""
        raise NotImplementedError

    @classmethod
    def _text(
        cls, folder: str, pipeline: Any, model: ModelSettings, device: torch.device
    ) -> TextEncoders:
        def load() -> Any:
            # The transformer comes along for its config: SD3 without T5 asks it for the width of its zeros.
            parts = {
                "transformer": pipeline.transformer,
                "vae": None,
                "scheduler": pipeline.scheduler,
            }
            parts |= dict.fromkeys(pretrained.absent(Path(folder), cls.text_parts))
            whole: Any = cls.pipeline_class.from_pretrained(
                folder, torch_dtype=base.DTYPES[model.dtype], **parts
            )
            for name in cls.text_parts:
                part = getattr(whole, name, None)
                if isinstance(part, nn.Module):
                    part.requires_grad_(False).eval()
            return whole

        cache = None
        if model.embeddings_cache:
            origin = pretrained.fingerprint(Path(folder), cls.text_parts)
            key = (cls.__name__, origin, str(model.max_sequence_length), model.dtype)
            cache = EmbeddingCache(Path(model.embeddings_cache), key, cls.cond_class)

        def encode(whole: Any, prompts: list[str], device: torch.device) -> Any:
            return cls.encode_with(whole, prompts, device, model.max_sequence_length)

        return TextEncoders(
            load, encode, parts=cls.text_parts, mode=model.text_encoders, device=device, cache=cache
        )

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> Any:
        """The family's condition of these prompts, by a pipeline that holds the text encoders on `device`."""
        raise NotImplementedError

    def encode(self, prompts: list[str]) -> Any:
        return self.text(prompts)

    def encode_ahead(self, prompts: list[str]) -> None:
        self.text.fill(prompts)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return torch.cat([self._decode(chunk) for chunk in x.split(self.decode_batch_size)])

    def _decode(self, x: Tensor) -> Tensor:
        """Clean latents as the VAE knows them (b, C, h, w) -> images (b, 3, H, W) fp32 in [0, 1]."""
        vae = self.pipeline.vae
        x = x.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images: Tensor = vae.decode(x.to(vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def export(self, policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
        export.save(self.pipeline_class, policy, values, folder, base=self.path)


def _check_options(cls: type[PipelineBackbone], model: ModelSettings) -> None:
    known = {
        "attention_backend": ("", *sorted(name.value for name in AttentionBackendName)),
        "compile": ("", *torch.compiler.list_backends(exclude_tags=())),
    }
    for field, choices in known.items():
        if (value := getattr(model, field)) not in choices:
            raise ValueError(
                f"model.{field} = {value!r} is not one of {', '.join(filter(None, choices))}"
            )
    if model.attention_backend and not cls.takes_attention_backend:
        raise ValueError(
            f"model.attention_backend = {model.attention_backend!r}: diffusers calls PyTorch's own attention in "
            f"{cls.__name__} and takes no other; leave it empty"
        )
    if model.attention_backend:
        try:
            _check_attention_backend_requirements(AttentionBackendName(model.attention_backend))
        except RuntimeError as error:
            raise ValueError(
                f"model.attention_backend = {model.attention_backend!r} cannot be used: {error}"
            ) from error


def apply_options(transformer: Any, model: ModelSettings) -> None:
    """What `config.model` asks of a transformer beyond its weights."""
    if model.attention_backend:
        transformer.set_attention_backend(model.attention_backend)
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if model.compile:
        # Block by block (regional): each kind of block is compiled once, in seconds, however many there are.
        for stack in transformer.children():
            for block in stack if isinstance(stack, nn.ModuleList) else ():
                block.compile(backend=model.compile)
