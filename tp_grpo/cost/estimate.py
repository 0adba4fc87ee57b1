"""What a run will take, before anything loads: images, FLOPs, bytes on the device by phase, hours.

The real classes run on the meta device in the config's shapes; nothing is downloaded or computed.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tp_grpo.cost import meter
from tp_grpo.data import prompts
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models import architecture, base
from tp_grpo.models.architecture import Architecture
from tp_grpo.models.policy import Policy
from tp_grpo.plan import Plan, make_plan
from tp_grpo.settings import Settings
from tp_grpo.train.old_policy import copies

# Bytes for the two moments of a parameter; 8-bit moments have a scale per 256 values.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256}


@dataclass(frozen=True)
class Counts:
    """Parameters and buffers of the transformer, modules with an adapter, trained parameters."""

    transformer: int
    adapted_modules: int
    trainable: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of an epoch over all ranks. evaluate: an epoch's share, None without its prompts."""

    sample: float
    decode: float
    train: float
    evaluate: float | None
    forward: float  # of one image while sampling, guidance included

    @property
    def total(self) -> float:
        return self.sample + self.decode + self.train + (self.evaluate or 0.0)


@dataclass(frozen=True)
class Network:
    """Bytes that each rank sends, and receives, in ring collectives; 0 with a single rank."""

    gradients: int  # an update: their mean over the ranks
    results: int  # an epoch: ladders and scores
    shares: int  # an update under FSDP2, in addition: the frozen weights of each pass
    share_per_pass: int  # the same for a pass of sampling


@dataclass(frozen=True)
class Estimate:
    """memory: phase -> part -> bytes on each rank's device; a phase needs the sum of its parts."""

    plan: Plan
    counts: Counts
    flops: Flops
    memory: dict[str, dict[str, int]]
    network: Network

    def peak(self, phase: str) -> int:
        return sum(self.memory[phase].values())

    def hours(self, epochs: int, tflops: float) -> float:
        """Hours of `epochs` at `tflops` x 10^12 FLOP/s a device, without scoring and input."""
        return epochs * self.flops.total / self.plan.world_size / (tflops * 1e12) / 3600


@dataclass(frozen=True)
class Measured:
    """FLOPs, and peak bytes in addition to the weights."""

    forward_flops: float  # of a row while sampling
    trained_flops: float  # of a forward pass of a row in an update
    update_flops: int  # of its micro-batch
    update_peak: int
    sample_peak: int  # of the largest sampling call


def estimate(config: Settings, world_size: int, shapes: Architecture | None = None) -> Estimate:
    """shapes: of the model; None: of the checkpoint that the config names.

    Raises ValueError for a config that does not plan, or an unknown architecture.
    """
    plan = make_plan(config, world_size)
    shapes = shapes or architecture.read(config.model)
    backbone = architecture.build(shapes, config.model)
    plan = plan.at(_schedule(backbone, plan.steps))
    # Counted with a copy of the frozen model on the device; host memory has it without a KL term.
    policy = Policy(
        backbone.transformer,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=tuple(config.lora.targets) or backbone.lora_targets,
        kl=True,
        frozen=backbone.frozen,
    )
    measured = measure(backbone, policy, shapes, config, plan)
    decode_flops, decode_peak = measure_decode(backbone, plan.batch_images)
    flops = _flops(config, plan, measured, decode_flops)
    memory = _memory(config, plan, shapes, backbone, policy, measured, decode_peak)
    return Estimate(plan, _counts(policy), flops, memory, _network(config, plan, policy))


def _schedule(backbone: Any, steps: int) -> list[float]:
    """The model's own sigmas, as numbers: the meta device has none."""
    here = copy.copy(backbone)
    here.device = torch.device("cpu")
    return list(here.sigmas(steps).tolist())


def measure(
    backbone: Any, policy: Policy, shapes: Architecture, config: Settings, plan: Plan
) -> Measured:
    """One training micro-batch, as `Updater` makes it, and the sampler's largest call."""
    dtype, sampled = base.DTYPES[config.model.dtype], config.sample.guidance_scale
    trained = config.train.guidance_scale or sampled
    kernels = functools.partial(meter.Kernels, dtype if dtype != torch.float32 else None)
    for parameter in policy.parameters.values():
        parameter.grad = torch.empty_like(parameter)  # it exists from the second micro-batch on
    if config.model.gradient_checkpointing:
        meter.checkpoint_blocks(backbone.transformer, kernels)
    with _meter(backbone) as training, kernels():
        velocity = _velocity(backbone, shapes, config, plan.train_rows, trained)
        forward_flops, reference = training.flops, torch.zeros_like(velocity)
        if config.train.beta > 0 or OBJECTIVES[config.objective.name].reference:
            with torch.no_grad(), policy.reference():
                reference = _velocity(backbone, shapes, config, plan.train_rows, trained)
        torch.autograd.backward((velocity - reference).square().mean())
    branch_rows = config.sample.max_rows if plan.ladder > 1 or plan.members > 1 else 0
    rows = max(plan.batch_size, config.eval.batch_size, branch_rows)
    with _meter(backbone) as sampling, kernels(), torch.no_grad():
        _velocity(backbone, shapes, config, rows, sampled)
    each = sampling.flops / rows, forward_flops / plan.train_rows
    return Measured(*each, training.flops, training.peak, sampling.peak)


def measure_decode(backbone: Any, images: int) -> tuple[float, int]:
    """FLOPs an image and peak bytes of decoding `images` latents, `model.decode_batch_size` a call.

    Only one call is run. During the last one all other images exist; joining takes all twice.
    """
    chunk = min(backbone.decode_batch_size, images)
    x = torch.empty(chunk, *backbone.latent_shape, device=architecture.META)
    with _meter(backbone, x) as decoding, meter.Kernels(None):
        decoded = meter.size([backbone.decode(x)]) // chunk
    peak = max(decoding.peak + (images - chunk) * decoded, 2 * images * decoded)
    return decoding.flops / chunk, peak


def _velocity(
    backbone: Any, shapes: Architecture, config: Settings, rows: int, scale: float
) -> Tensor:
    x = torch.empty(rows, *backbone.latent_shape, device=architecture.META)
    sigma = torch.empty((), device=architecture.META)
    cond = architecture.conditions(shapes, config.model, rows)
    v: Tensor = backbone.velocity(x, sigma, cond, scale)
    return v


def _meter(backbone: Any, *inputs: Tensor) -> meter.Meter:
    """Counts what a call allocates in addition to weights, buffers, gradients and inputs."""
    return meter.Meter([*_weights(backbone.transformer), *_weights(backbone.pipeline.vae), *inputs])


def _weights(module: torch.nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [*module.parameters(), *module.buffers(), *gradients]


def _counts(policy: Policy) -> Counts:
    trained = sum(parameter.numel() for parameter in policy.parameters.values())
    held = sum(t.numel() for t in [*policy.transformer.parameters(), *policy.transformer.buffers()])
    adapters = len(policy.parameters) // 2 if policy.rank else 0
    return Counts(held - (trained if policy.rank else 0), adapters, trained)


def _flops(config: Settings, plan: Plan, measured: Measured, decode: float) -> Flops:
    forward = measured.forward_flops
    looked_at = plan.images / plan.members * plan.columns * config.train.inner_epochs
    images, evaluate = _evaluated(config), None
    if images is not None:
        evaluate = images * (config.eval.steps * forward + decode) / config.eval.every
    each = measured.update_flops / plan.train_rows
    each += _compared(config, plan) * measured.trained_flops
    return Flops(
        sample=plan.epoch_nfe * forward,
        decode=plan.epoch_images * decode,
        train=looked_at * each,
        evaluate=evaluate,
        forward=forward,
    )


def _compared(config: Settings, plan: Plan) -> float:
    """Passes of the old and the lagging policy for each point, on the average over an epoch.

    The first update finds an old policy that does not lag where the policy is.
    """
    if plan.points != "noised":  # sampling has kept the old policy's
        return 0.0
    objective, lags = OBJECTIVES[config.objective.name], config.objective.lags
    moved = 1 - 1 / (plan.updates * config.train.inner_epochs)
    if not objective.lagging:
        return 1.0 if lags else moved
    pulled = getattr(config.objective, objective.lagging) > 0
    return moved + (1.0 if lags and pulled else 0.0)


def _evaluated(config: Settings) -> int | None:
    """Images of an evaluation; None if its prompts cannot be read."""
    count = config.eval.prompts
    try:
        count = count or len(prompts.load(config.prompts.eval, field="prompts.eval"))
    except ValueError:
        return None
    return count * config.eval.members


def _network(config: Settings, plan: Plan, policy: Policy) -> Network:
    others = (plan.world_size - 1) / plan.world_size  # the share that comes from other ranks
    trained = meter.size(policy.parameters.values())
    frozen = meter.size(policy.transformer.parameters()) - trained if policy.rank else 0
    columns = plan.ladder * (2 + len(config.rewards.scorers))  # ladder, total, each scorer
    passes = 3 if config.train.beta > 0 else 2  # forward, backward, and the frozen model's forward
    return Network(
        gradients=round(2 * others * trained),
        results=round(others * plan.images * 4 * columns),
        shares=round(others * frozen * passes * plan.micro_batches),
        share_per_pass=round(others * frozen),
    )


def _memory(
    config: Settings,
    plan: Plan,
    shapes: Architecture,
    backbone: Any,
    policy: Policy,
    measured: Measured,
    decode_peak: int,
) -> dict[str, dict[str, int]]:
    """Bytes by phase and kind. Not counted: the fp32 `wo` of a T5 in fp16, 2 GB of T5-XXL."""
    trained = meter.size(policy.parameters.values())
    transformer = [*policy.transformer.parameters(), *policy.transformer.buffers()]
    compares = config.train.beta > 0 or OBJECTIVES[config.objective.name].reference
    copy = policy._frozen.values() if compares else ()
    encoders = sum(shapes.text_encoders.values()) * base.DTYPES[config.model.dtype].itemsize
    always = {
        "frozen transformer": meter.size(transformer) - trained + meter.size(copy),
        "VAE": meter.size(_weights(backbone.pipeline.vae)),
        "trained weights": trained,
        "optimizer": round(trained / 4 * OPTIMIZER_BYTES[config.train.optimizer]),
        "EMA": trained,
    }
    if plan.world_size > 1:
        always["gradient buckets"] = trained
    if kept := sum(copies(config)):
        always["old policy"] = kept * trained
    if config.model.text_encoders == "resident":
        always["text encoders"] = encoders
    latent = 4 * torch.Size(backbone.latent_shape).numel()
    condition = meter.size(vars(architecture.conditions(shapes, config.model, 1)).values())
    K, rows = len(plan.window), plan.batch_size
    waiting = rows * (1 if config.sample.store_on_cpu else plan.updates * plan.batches_per_update)
    clean = OBJECTIVES[config.objective.name].clean
    images = plan.members * plan.ladder if clean else 0  # completions kept for the loss
    latents = {
        "trajectories": 2 * K + 1 + images,
        "shared_state": 2 + plan.group_size + images,
        "noised": plan.times + 1,
    }
    stored = {"trajectories": waiting * (latents[plan.points] * latent + condition)}
    noise_and_branches = rows * plan.members * (2 * plan.ladder + 2 * K) * latent
    completions = plan.batch_images * latent
    return {
        "encode": always | {"text encoders": encoders},
        "sample": always | stored | {"activations": measured.sample_peak + noise_and_branches},
        "decode": always | stored | {"activations": decode_peak + completions},
        "update": always | stored | {"gradients": trained, "activations": measured.update_peak},
    }
