"""FSDP2 over a transformer's frozen part: each rank holds a share and gathers a block when needed.

The adapters stay whole on every rank, so checkpoints, averages and exports are as in any launch; an
update's gradients are averaged once. accelerate's own wrapping would shard the fp32 adapters with
the frozen half precision, and uses DDP on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tp_grpo.method.credit import needs_branches
from tp_grpo.settings import Settings


def asked(environment: Mapping[str, str], config: Settings) -> bool:
    """Whether accelerate's launcher asks for FSDP2, which it does by environment variables.

    Raises ValueError for what the launcher offers and the trainer does not.
    """
    on = {name.upper() for name, value in environment.items() if value.lower() == "true"}
    for name, words in {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.items():
        if f"ACCELERATE_USE_{name}" in on:
            raise ValueError(
                f"the launch asks for {words}: its engine casts the fp32 adapters to model.dtype "
                "and steps on its own schedule; launch with scripts/accelerate_configs/ddp.yaml, "
                "or fsdp2.yaml, which shards the frozen weights"
            )
    if "ACCELERATE_USE_FSDP" not in on:
        return False
    compiled, sample = config.model.compile, config.sample
    unequal = "ranks would call the model unequally often, and wait for each other for ever"
    reshards = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    reasons = {
        "fsdp_version = 1: only FSDP2 leaves the adapters whole; set it to 2": (
            environment.get("FSDP_VERSION", "1") != "2"
        ),
        "fsdp_reshard_after_forward = false: each pass frees its blocks; set it to true": (
            not reshards
        ),
        "fsdp_offload_params: shares stay on the GPU; set it to false": "FSDP_OFFLOAD_PARAMS" in on,
        "lora.rank = 0: FSDP2 shards the frozen weights, and here all are trained; use ddp.yaml": (
            not config.lora.rank
        ),
        f"sample.fork = {sample.fork!r}: {unequal}; set it to 'first', or use ddp.yaml": (
            sample.groups == "shared_state" and sample.fork != "first"
        ),
        f"sample.same_latent = True: {unequal}; set it to false, or use ddp.yaml": (
            sample.same_latent and needs_branches(config.credit.name)
        ),
        f"model.compile = {compiled!r}: gathered blocks are not compiled; leave it empty, or use "
        "ddp.yaml": bool(compiled),
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError("the launch asks for FSDP, which does not go with " + "; ".join(wrong))
    return True


def shard(transformer: nn.Module, trained: Iterable[nn.Parameter], device: torch.device) -> None:
    """In place: a unit for each block (an entry of a `ModuleList`) and one for the rest.

    `trained` stay whole and take rank 0's values.
    """
    whole = set(trained)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for stack in transformer.children():
        for block in stack if isinstance(stack, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(transformer, mesh=mesh, ignored_params=whole)
    with torch.no_grad():
        for parameter in trained:
            distributed.broadcast(parameter, 0)


def average_gradients(trained: Iterable[nn.Parameter]) -> None:
    """Over all ranks, in one collective."""
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))
