"""What all diffusers pipelines share as backbones; an adapter adds its family's (`sd3.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.models import attention_dispatch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from tp_grpo.models import adapter_file, checkpoint_files, export, pretrained, tensor_names
from tp_grpo.models.base import DTYPES
from tp_grpo.models.policy import Policy
from tp_grpo.models.text import EmbeddingCache, TextEncoders, check_cache, trimmed
from tp_grpo.settings import ModelSettings
from tp_grpo.types import cat, index, repeat, to

# The joint attention of image and text, named alike in many families; Flow-GRPO's LoRA targets.
JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)


class PipelineBackbone:
    """Transformer and VAE on the device; text encoders load when there is something to encode.

    An adapter sets the class variables, implements the three methods that raise
    NotImplementedError, and overrides others where its family differs.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    cond_class: ClassVar[type]  # a frozen dataclass of tensors of leading dim B, see `text`
    text_parts: ClassVar[tuple[str, ...]]  # the pipeline's encoders and tokenizers
    lora_targets: tuple[str, ...]  # ends of module names
    frozen: tuple[str, ...] = ()  # modules without a part in the velocity
    classifier_free: ClassVar[bool]  # guidance: against the empty prompt, or an input of the model
    even_sigmas: ClassVar[bool]  # before the shift: 1, 1 - 1/T .. 1/T; else the scheduler's own
    own_attention: ClassVar[str] = ""  # why its attention kernel cannot be exchanged
    max_text: ClassVar[int] = 512  # tokens that the stock pipeline takes
    text_chunk: ClassVar[int] = 8  # prompts in every call of the encoders
    template_tokens: ClassVar[int] = 0  # of `text_of`, that are not counted
    tokenizer: ClassVar[str] = "tokenizer"  # the part that `model.max_sequence_length` cuts
    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")  # that it can be trained in

    @staticmethod
    def patch(transformer: Mapping[str, Any]) -> int:
        """Latent pixels a side of an image token, by the transformer's config."""
        return 2

    @staticmethod
    def vae_scale(vae: Mapping[str, Any]) -> int:
        """Pixels a side of one latent pixel, by the VAE's config."""
        return int(2 ** (len(vae["block_out_channels"]) - 1))

    @staticmethod
    def random_cond(
        transformer: Mapping[str, Any], rows: int, tokens: int, clip_tokens: int, **options: Any
    ) -> Any:
        """A condition of that many rows and tokens, to estimate and to time with.

        options: dtype and device of its tensors.
        """
        raise NotImplementedError

    @staticmethod
    def encode_with(
        pipeline: Any, prompts: list[str], device: torch.device, max_sequence_length: int
    ) -> Any:
        """The condition of these prompts, by a pipeline whose text encoders are on `device`."""
        raise NotImplementedError

    @staticmethod
    def text_of(pipeline: Any, prompt: str) -> str:
        """What the tokenizer is given for a prompt."""
        return prompt

    def predict(self, x: Tensor, sigma: Tensor, cond: Any, guidance_scale: float) -> Tensor:
        """One call of the transformer: x (B, *L) fp32 at sigma (B,) -> v (B, *L), any dtype."""
        raise NotImplementedError

    def __init__(
        self, pipeline: Any, model: ModelSettings, device: torch.device, encoders: TextEncoders
    ) -> None:
        self.pipeline, self.device, self.text = pipeline, device, encoders
        self.transformer: nn.Module = pipeline.transformer
        self.path, self.decode_batch_size = model.path, model.decode_batch_size
        config, scale = pipeline.transformer.config, self.vae_scale(pipeline.vae.config)
        unit = scale * self.patch(config)
        self.rows, self.columns = model.height // unit, model.width // unit  # of image tokens
        latent_side = model.height // scale, model.width // scale
        self.latent_shape: tuple[int, ...] = (config["in_channels"], *latent_side)
        self.empty: Any = None  # the empty prompt's condition, where guidance is classifier-free

    @classmethod
    def load(cls, model: ModelSettings, device: torch.device) -> Any:
        """The checkpoint that `config.model` names. Raises as `families.load` does."""
        check_options(cls, model)
        pretrained.check_file(model.path, cls.pipeline_class)
        configs = pretrained.read_configs(model.path, model.revision, cls.pipeline_class.__name__)
        with checkpoint_files.usable(model.path):
            cls.check_config(model, configs)
        if model.adapter:
            shapes = cls.pipeline_class, configs["transformer"]
            adapter_file.check("model.adapter", model.adapter, *shapes)
        folder = pretrained.fetch(cls.pipeline_class, model.path, model.revision)
        tensor_names.check(Path(folder))
        pipeline: Any = cls.pipeline_class.from_pretrained(
            folder,
            variant=checkpoint_files.variant(Path(folder)),
            torch_dtype={"default": DTYPES[model.dtype], "vae": DTYPES[model.vae_dtype]},
            **dict.fromkeys(cls.text_parts),
        )
        if model.adapter:
            adapter_file.merge(pipeline.transformer, adapter_file.read(pipeline, model.adapter))
        for module in (pipeline.transformer, pipeline.vae):
            module.requires_grad_(False).eval().to(device)
        apply_options(pipeline.transformer, model)
        return cls(pipeline, model, device, cls._text(folder, pipeline, model, device))

    @classmethod
    def check_config(cls, model: ModelSettings, configs: Mapping[str, Any]) -> None:
        """Raises ValueError for a `config.model` that the checkpoint cannot serve.

        configs: of its `transformer`, its `vae` and the pipeline itself (`index`).
        """
        transformer, vae = configs["transformer"], configs["vae"]
        if model.max_sequence_length > cls.max_text:
            raise ValueError(
                f"model.max_sequence_length = {model.max_sequence_length}: "
                f"{cls.__name__} takes at most {cls.max_text}"
            )
        if model.dtype not in cls.dtypes:
            raise ValueError(
                f"model.dtype = {model.dtype!r}: {cls.__name__} was trained in bf16, whose "
                f"range fp16 does not have; use {' or '.join(cls.dtypes)}"
            )
        unit = cls.vae_scale(vae) * cls.patch(transformer)
        side = transformer.get("pos_embed_max_size")  # tokens that have a position embedding
        pretrained.check_resolution(model.height, model.width, unit, side and side * unit)

    @classmethod
    def _text(
        cls, folder: str, pipeline: Any, model: ModelSettings, device: torch.device
    ) -> TextEncoders:
        def load() -> Any:
            # SD3 without T5 reads the width of its zeros from the transformer's config.
            shared = {"transformer": pipeline.transformer, "scheduler": pipeline.scheduler}
            absent = dict.fromkeys(pretrained.absent(Path(folder), cls.text_parts))
            variant = checkpoint_files.variant(Path(folder))
            options = {"torch_dtype": DTYPES[model.dtype], "variant": variant, "vae": None}
            whole: Any = cls.pipeline_class.from_pretrained(folder, **options, **shared, **absent)
            for name in cls.text_parts:
                part = getattr(whole, name, None)
                if isinstance(part, nn.Module):
                    part.requires_grad_(False).eval()
            return whole

        def encode(whole: Any, prompts: list[str], device: torch.device) -> Any:
            return cls.encode_with(whole, prompts, device, model.max_sequence_length)

        def cut(whole: Any, prompts: list[str]) -> list[int]:
            tokenizer = getattr(whole, cls.tokenizer, None)
            if tokenizer is None:
                return []
            texts = [cls.text_of(whole, prompt) for prompt in prompts]
            lengths = map(len, tokenizer(texts).input_ids)
            return [n for n in lengths if n - cls.template_tokens > model.max_sequence_length]

        cache = None
        if model.embeddings_cache:
            origin = pretrained.fingerprint(Path(folder), cls.text_parts)
            key = (cls.__name__, origin, str(model.max_sequence_length), model.dtype)
            cache = EmbeddingCache(Path(model.embeddings_cache), key, cls.cond_class)
        mode = model.text_encoders
        return TextEncoders(
            load,
            encode,
            cut,
            parts=cls.text_parts,
            chunk=cls.text_chunk,
            mode=mode,
            device=device,
            cache=cache,
        )

    def encode(self, prompts: list[str]) -> Any:
        if self.empty is not None or not self.classifier_free:
            return self.text(prompts)
        # Guidance needs the empty prompt too: encode it while the encoders are on the device.
        together = self.text([*prompts, ""])
        self.empty = to(trimmed(index(together, slice(len(prompts), None))), self.device)
        return index(together, slice(len(prompts)))

    def encode_ahead(self, prompts: list[str]) -> None:
        self.text.fill([*prompts, ""] if self.classifier_free else prompts)

    def sigmas(self, steps: int) -> Tensor:
        scheduler = self.pipeline.scheduler
        config = scheduler.config
        even = self.even_sigmas and not config.get("use_flow_sigmas")
        scheduler.set_timesteps(
            steps,
            device=self.device,
            sigmas=np.linspace(1.0, 1 / steps, steps) if even else None,
            mu=self.mu(config, steps) if config.get("use_dynamic_shifting") else None,
        )
        sigmas: Tensor = scheduler.sigmas.to(torch.float32)
        return sigmas

    def mu(self, scheduler: Mapping[str, Any], steps: int) -> float:
        """The shift of a scheduler that shifts by the number of image tokens, and of steps."""
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(self.rows * self.columns, *(scheduler[name] for name in names))
        return float(mu)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any, guidance_scale: float) -> Tensor:
        sigma = sigma.expand(len(x))
        if not self.classifier_free or guidance_scale <= 1:
            return self.predict(x, sigma, cond, guidance_scale).float()
        if self.empty is None:
            self.encode([""])
        x, sigma = torch.cat([x, x]), torch.cat([sigma, sigma])
        pairs = cat([repeat(self.empty, len(x) // 2), cond])
        v = self.predict(x, sigma, pairs, 1.0)
        without, with_prompt = v.float().chunk(2)
        return self.guided(without, with_prompt, guidance_scale)

    def guided(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance: the velocities (B, *L) of the empty prompt and of the prompts.

        scale above 1, where 1 is the prompt's own velocity.
        """
        return without + scale * (with_prompt - without)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return torch.cat([self._decode(chunk) for chunk in x.split(self.decode_batch_size)])

    def unpack(self, x: Tensor) -> Tensor:
        """Latents (B, *L) fp32 as the VAE decodes them, in its own shape and scale."""
        config = self.pipeline.vae.config
        return x / config.scaling_factor + (config.shift_factor or 0.0)

    def _decode(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        images: Tensor = vae.decode(self.unpack(x.float()).to(vae.dtype), return_dict=False)[0]
        images = images[:, :, 0] if images.ndim == 5 else images  # a video's only frame
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def begin_with(self, path: str) -> dict[str, adapter_file.Update]:
        updates = adapter_file.read(self.pipeline, path)
        return {name: update for name, update in updates.items() if name not in self.frozen}

    def export(self, policy: Policy, values: Mapping[str, Tensor], folder: Path) -> None:
        export.save(self.pipeline_class, policy, values, folder, base=self.path)


def check_options(cls: type[PipelineBackbone], model: ModelSettings) -> None:
    """Raises ValueError for options of `config.model` that this machine or family lacks."""
    if model.embeddings_cache:
        check_cache(model.embeddings_cache)
    known = {
        "attention_backend": (
            "",
            *sorted(n.value for n in attention_dispatch.AttentionBackendName),
        ),
        "compile": ("", *torch.compiler.list_backends(exclude_tags=())),
    }
    for field, choices in known.items():
        if (value := getattr(model, field)) not in choices:
            listed = ", ".join(filter(None, choices))
            raise ValueError(f"model.{field} = {value!r} is not one of {listed}")
    if model.attention_backend:
        chosen = f"model.attention_backend = {model.attention_backend!r}"
        if cls.own_attention:
            raise ValueError(f"{chosen}: {cls.own_attention}; leave it empty")
        try:
            name = attention_dispatch.AttentionBackendName(model.attention_backend)
            attention_dispatch._check_attention_backend_requirements(name)
        except RuntimeError as error:
            raise ValueError(f"{chosen} cannot be used: {error}") from error


def apply_options(transformer: Any, model: ModelSettings) -> None:
    """Apply the fields of `config.model` that change how the transformer computes."""
    if model.attention_backend:
        transformer.set_attention_backend(model.attention_backend)
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if model.compile:
        # Regional: each kind of block is compiled once, in seconds, however many there are.
        for stack in transformer.children():
            for block in stack if isinstance(stack, nn.ModuleList) else ():
                block.compile(backend=model.compile)
