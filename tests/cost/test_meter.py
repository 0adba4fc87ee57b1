"""What is counted on the meta device is what a CPU really computes, allocates and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_models import PROMPTS, settings
from tp_grpo import models
from tp_grpo.cost import meter
from tp_grpo.models import architecture
from tp_grpo.models.policy import Policy

META, CPU = torch.device("meta"), torch.device("cpu")


def backbone(kind: str, path: Path, device: torch.device) -> tuple[Any, Any, Policy]:
    """The backbone with a LoRA, and a condition of two prompts."""
    config = settings(path, kind)
    if device == CPU:
        model = models.load(config, CPU)
        cond = model.encode(PROMPTS)
    else:
        shapes = architecture.read(config)
        model: Any = architecture.build(shapes, config)
        cond = architecture.conditions(shapes, config, len(PROMPTS))
    policy = Policy(model.transformer, rank=4, alpha=8, targets=model.lora_targets, kl=True)
    for parameter in policy.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    return model, cond, policy


def known_to(model: Any, cond: Any, *inputs: Tensor) -> list[Tensor]:
    """What exists before the call: weights, gradients, inputs, the empty prompt's condition."""
    held = [*model.transformer.parameters(), *model.transformer.buffers()]
    gradients = [parameter.grad for parameter in held if parameter.grad is not None]
    conditions = [cond] if model.empty is None else [cond, model.empty]
    return [
        *held,
        *gradients,
        *inputs,
        *(tensor for c in conditions for tensor in (c.embeds, c.pooled)),
    ]


def micro_batch(
    kind: str, path: Path, device: torch.device, *, recompute: bool = False
) -> tuple[int, int, int, int]:
    """FLOPs forward and in all, bytes live between forward and backward, and the peak."""
    model, cond, _ = backbone(kind, path, device)
    x = torch.zeros(len(PROMPTS), *model.latent_shape, device=device)
    sigma = torch.tensor(0.5, device=device)
    if recompute:
        meter.checkpoint_blocks(model.transformer, lambda: meter.Kernels(None))
    with meter.Meter(known_to(model, cond, x, sigma)) as counted, meter.Kernels(None):
        v = model.velocity(x, sigma, cond, 3.5)
        forward, held = counted.flops, counted.live
        torch.autograd.backward(v.square().mean())
    return forward, counted.flops, held, counted.peak


def test_a_linear_layers_flops_and_bytes() -> None:
    layer, x = torch.nn.Linear(6, 10, device=META), torch.empty(4, 6, device=META)
    with meter.Meter([*layer.parameters(), x]) as counted:
        y = layer(x)
        assert counted.flops == 2 * 4 * 6 * 10
        assert counted.live == counted.peak == 4 * 4 * 10
        y.square().sum().backward()
    # x needs no gradient: only that of the weight is a product of matrices.
    assert counted.flops == 2 * (2 * 4 * 6 * 10)


def test_what_is_freed_is_no_longer_live_and_views_are_free() -> None:
    with meter.Meter() as counted:
        a = torch.empty(1000, device=META)
        assert counted.live == 4000
        b = a.view(10, 100)[:5] + 0
        assert counted.live == 6000
        del a
        assert counted.live == 2000
        assert counted.peak == 6000
        b += 1
    assert counted.live == 2000
    assert counted.peak == 6000


def test_the_flops_are_those_of_pytorchs_own_counter(kind: str, path: Path) -> None:
    model, cond, _ = backbone(kind, path, META)
    x = torch.zeros(len(PROMPTS), *model.latent_shape, device=META)
    sigma = torch.tensor(0.5, device=META)
    # Attention on meta tensors is two plain products, of the same FLOPs.
    with FlopCounterMode(display=False) as counter:
        v = model.velocity(x, sigma, cond, 3.5)
    forward, _, _, _ = micro_batch(kind, path, META)
    assert forward == counter.get_total_flops() > 0
    assert v.shape == x.shape


def test_the_meta_device_counts_what_the_cpu_does(kind: str, path: Path) -> None:
    assert micro_batch(kind, path, META) == micro_batch(kind, path, CPU)


def test_the_meta_device_counts_what_the_cpu_does_while_sampling(kind: str, path: Path) -> None:
    counts = []
    for device in (META, CPU, META):  # the last time from memory alone
        model, cond, _ = backbone(kind, path, device)
        x = torch.zeros(len(PROMPTS), *model.latent_shape, device=device)
        sigma = torch.tensor(0.5, device=device)
        known = known_to(model, cond, x, sigma)
        with meter.Meter(known) as counted, meter.Kernels(None), torch.no_grad():
            model.velocity(x, sigma, cond, 3.5)
        counts.append((counted.flops, counted.peak))
    assert counts[0] == counts[1] == counts[2]


def test_a_call_is_remembered_only_if_it_makes_new_tensors_of_the_meta_device() -> None:
    aten = torch.ops.aten
    a, here = torch.empty(8, 4, device=META), torch.ones(8, 4)
    for call, count in (
        (lambda: a + 1, 128),
        (lambda: aten._unsafe_view(a, [4, 8]), 0),  # the same bytes, without saying so
        (lambda: aten.native_layer_norm(a, [4], None, None, 1e-5), 128 + 2 * 32),
        (lambda: a + 1.0, 128),
        (lambda: here + 1, 128),
    ):
        for _ in range(3):
            with meter.Meter([a, here]) as counted:
                out = call()
            assert counted.live == count
    assert out.tolist() == [[2] * 4] * 8
    assert (a + 1).dtype == torch.float32 and (a.long() + True).dtype == torch.int64


def test_live_after_the_forward_is_what_autograd_saves(kind: str, path: Path) -> None:
    model, cond, _ = backbone(kind, path, CPU)
    x, sigma = torch.zeros(len(PROMPTS), *model.latent_shape), torch.tensor(0.5)
    known = {t.untyped_storage().data_ptr() for t in known_to(model, cond, x, sigma)}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        v = model.velocity(x, sigma, cond, 3.5)
    bytes_saved = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    _, _, held, _ = micro_batch(kind, path, META)
    assert held == bytes_saved + v.untyped_storage().nbytes()


def test_checkpointing_trades_bytes_for_the_blocks_forward(kind: str, path: Path) -> None:
    forward, flops, held, peak = micro_batch(kind, path, META)
    again, recomputed, kept, lower = micro_batch(kind, path, META, recompute=True)
    assert again == forward
    assert kept < held / 2
    assert lower < peak
    assert flops + 0.9 * forward < recomputed < flops + forward
    assert micro_batch(kind, path, CPU, recompute=True) == (again, recomputed, kept, lower)


def test_autocast_goes_low_in_products_and_high_in_norms() -> None:
    x, weight = torch.empty(1, 2, 3, 8, device=META), torch.empty(8, 8, device=META)
    with meter.Kernels(torch.bfloat16):
        low = F.linear(x, weight)
        assert low.dtype == torch.bfloat16
        assert F.layer_norm(low, (8,)).dtype == torch.float32
        assert (low @ weight).dtype == torch.bfloat16
        assert low.pow(2).dtype == torch.float32
        assert F.scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16
        assert F.gelu(low).dtype == torch.bfloat16
    with meter.Kernels(None):
        assert (
            F.linear(x, weight).dtype
            == F.scaled_dot_product_attention(x, x, x).dtype
            == torch.float32
        )


def test_fused_attention_keeps_no_square_of_the_sequence() -> None:
    heads = torch.empty(1, 2, 1000, 16, device=META, requires_grad=True)
    with meter.Meter([heads]) as counted, meter.Kernels(torch.bfloat16):
        out = F.scaled_dot_product_attention(heads, heads, heads)
        assert counted.flops == 2 * 2 * 2 * 1000 * 1000 * 16
        torch.autograd.backward(out.sum())
    assert counted.peak < 1000 * 1000
