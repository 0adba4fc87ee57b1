"""What a run will take, before anything loads: images, FLOPs, bytes on the device by phase, hours.

The real classes run on the meta device with the config's own shapes; nothing is downloaded or computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tp_grpo import cost, credit, prompts
from tp_grpo.models import architecture, base, lora
from tp_grpo.models.architecture import Architecture
from tp_grpo.plan import Plan, make_plan

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256}  # a parameter: two moments; 8-bit ones have scales


@dataclass(frozen=True)
class Counts:
    """Of the transformer: parameters with its buffers, modules that got an adapter, trained parameters."""

    transformer: int
    adapted_modules: int
    trainable: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of an epoch over all ranks. evaluate: an epoch's share; None where the prompts cannot be read."""

    sample: float
    decode: float
    train: float
    evaluate: float | None
    forward: float  # of one image, guidance included; the others are made of it

    @property
    def total(self) -> float:
        return self.sample + self.decode + self.train + (self.evaluate or 0.0)


@dataclass(frozen=True)
class Estimate:
    """memory: phase -> part -> bytes on each rank's device; a phase needs the sum of its parts."""

    plan: Plan
    counts: Counts
    flops: Flops
    memory: dict[str, dict[str, int]]

    def peak(self, phase: str) -> int:
        return sum(self.memory[phase].values())

    def hours(self, epochs: int, tflops: float) -> float:
        """Of `epochs`, when every device computes `tflops` x 10^12 FLOP/s. Scoring and input are not counted."""
        return epochs * self.flops.total / self.plan.world_size / (tflops * 1e12) / 3600


@dataclass(frozen=True)
class Measured:
    """A batch's forward, its micro-batch and the largest sampling call: FLOPs, and peak bytes beside the weights."""

    forward_flops: int
    update_flops: int
    update_peak: int
    sample_peak: int


def estimate(config: Any, world_size: int) -> Estimate:
    """Raises ValueError for a config that does not plan, or whose checkpoint's architecture is not known."""
    plan = make_plan(config, world_size, branches=credit.needs_branches(config.credit.name))
    if config.model.dtype not in base.DTYPES:
        raise ValueError(f"model.dtype = {config.model.dtype!r} is not one of {', '.join(base.DTYPES)}")
    shapes = architecture.read(config.model)
    transformer = architecture.build_transformer(shapes, base.DTYPES[config.model.dtype])
    counts = adapt(transformer, shapes, config.lora)
    measured = measure(transformer, shapes, config, plan)
    vae = architecture.build_vae(shapes, base.DTYPES[config.model.vae_dtype])
    decoded = measure_decode(vae, shapes, config.model, plan.batch_size * plan.ladder)
    flops = _flops(config, plan, measured, decoded.flops / (plan.batch_size * plan.ladder))
    memory = _memory(config, plan, shapes, transformer, vae, measured, decoded.peak)
    return Estimate(plan, counts, flops, memory)


def adapt(transformer: Any, shapes: Architecture, settings: Any) -> Counts:
    """Adds the config's LoRA. Raises ValueError for targets that no module has."""
    total = sum(tensor.numel() for tensor in [*transformer.parameters(), *transformer.buffers()])
    targets = tuple(settings.targets) or architecture.lora_targets(shapes)
    lora.add(transformer, rank=settings.rank, alpha=settings.alpha, targets=targets)
    trained = lora.parameters(transformer).values()
    return Counts(total, len(trained) // 2, sum(parameter.numel() for parameter in trained))


def measure(transformer: Any, shapes: Architecture, config: Any, plan: Plan) -> Measured:
    """One training micro-batch, as `Updater` makes it, and the sampler's largest call."""
    dtype = base.DTYPES[config.model.dtype]
    low = dtype if dtype != torch.float32 else None
    guidance = config.sample.guidance_scale if shapes.type == "sd3" else 1.0  # FLUX takes it as an input
    passes = 2 if guidance > 1 else 1
    inputs = architecture.forward_inputs(shapes, config.model, plan.batch_size * passes)
    for parameter in lora.parameters(transformer).values():
        parameter.grad = torch.empty_like(parameter)  # from the second micro-batch on it is there
    if config.model.gradient_checkpointing:
        cost.checkpoint_blocks(transformer, lambda: cost.Kernels(low))
    with _meter(transformer, inputs) as meter, cost.Kernels(low):
        velocity = _velocity(transformer, inputs, guidance)
        forward_flops, reference = meter.flops, torch.zeros_like(velocity)
        if config.train.beta > 0:
            with torch.no_grad(), lora.disabled(transformer):
                reference = _velocity(transformer, inputs, guidance)
        torch.autograd.backward((velocity - reference).square().mean())
    rows = max(plan.batch_size, config.eval.batch_size, config.sample.max_rows if plan.branches else 0)
    inputs = architecture.forward_inputs(shapes, config.model, rows * passes)
    with _meter(transformer, inputs) as sampling, cost.Kernels(low), torch.no_grad():
        _velocity(transformer, inputs, guidance)
    return Measured(forward_flops, meter.flops, meter.peak, sampling.peak)


def measure_decode(vae: Any, shapes: Architecture, model: Any, images: int) -> cost.Meter:
    """Decoding the `images` completions of a rollout batch, `model.decode_batch_size` at a time."""
    latents = torch.empty(images, *shapes.latent_shape(model), dtype=vae.dtype, device=architecture.META)
    with _meter(vae, {"latents": latents}) as meter, cost.Kernels(None), torch.no_grad():
        parts = [vae.decode(part, return_dict=False)[0].float() for part in latents.split(model.decode_batch_size)]
        (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
    return meter


def _velocity(transformer: Any, inputs: dict[str, Any], guidance: float) -> Tensor:
    v: Tensor = transformer(**inputs)[0].float()
    if guidance <= 1:
        return v
    without, with_prompt = v.chunk(2)
    return without + guidance * (with_prompt - without)


def _meter(module: Any, inputs: dict[str, Any]) -> cost.Meter:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    given = [value for value in inputs.values() if isinstance(value, Tensor)]
    return cost.Meter([*module.parameters(), *module.buffers(), *gradients, *given])


def _flops(config: Any, plan: Plan, measured: Measured, decode: float) -> Flops:
    forward = measured.forward_flops / plan.batch_size
    steps = len(plan.window) * config.train.inner_epochs
    evaluated = _evaluated(config)
    return Flops(
        sample=plan.images * plan.nfe * forward,
        decode=plan.images * plan.ladder * decode,
        train=plan.images * steps * measured.update_flops / plan.batch_size,
        evaluate=None if evaluated is None else evaluated * (config.eval.steps * forward + decode) / config.eval.every,
        forward=forward,
    )


def _evaluated(config: Any) -> int | None:
    """Images of an evaluation."""
    if config.eval.prompts:
        return int(config.eval.prompts * config.eval.members)
    try:
        return len(prompts.load(config.prompts.eval, field="prompts.eval")) * int(config.eval.members)
    except ValueError:
        return None


def _memory(
    config: Any, plan: Plan, shapes: Architecture, transformer: Any, vae: Any, measured: Measured, decode_peak: int
) -> dict[str, dict[str, int]]:
    trained = cost.size(lora.parameters(transformer).values())
    frozen = cost.size([*transformer.parameters(), *transformer.buffers()]) - trained
    encoders = sum(shapes.text_encoders.values()) * base.DTYPES[config.model.dtype].itemsize
    always = {
        "frozen transformer": frozen,
        "VAE": cost.size([*vae.parameters(), *vae.buffers()]),
        "LoRA": trained,
        "optimizer": round(trained / 4 * OPTIMIZER_BYTES[config.train.optimizer]),
        "EMA": trained,
    }
    if plan.world_size > 1:
        always["gradient buckets"] = trained
    if config.model.text_encoders == "resident":
        always["text encoders"] = encoders
    latent, condition = _sample_bytes(config.model, shapes)
    K, rows = len(plan.window), plan.batch_size
    waiting = rows * (1 if config.sample.store_on_cpu else plan.updates * plan.batches_per_update)
    stored = {"trajectories": waiting * ((2 * K + 1) * latent + condition)}
    noise_and_branches = rows * (2 * plan.ladder + 2 * K) * latent
    clean = rows * plan.ladder * latent
    return {
        "encode": always | {"text encoders": encoders},
        "sample": always | stored | {"activations": measured.sample_peak + noise_and_branches},
        "decode": always | stored | {"activations": decode_peak + clean},
        "update": always | stored | {"gradients": trained, "activations": measured.update_peak},
    }


def _sample_bytes(model: Any, shapes: Architecture) -> tuple[int, int]:
    """Bytes of a sample's latent, fp32, and of its condition, in the model's dtype."""
    config = shapes.transformer
    width = shapes.text_tokens(model) * config["joint_attention_dim"] + config["pooled_projection_dim"]
    return 4 * torch.Size(shapes.latent_shape(model)).numel(), width * base.DTYPES[model.dtype].itemsize
