"""FLOPs and bytes of a computation, counted while it runs; on the meta device it costs nothing."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# CUDA's autocast for the models' functions ("autocast op reference" of PyTorch's manual).
_LOW = {"linear", "conv2d", "matmul", "__matmul__", "bmm", "baddbmm", "addmm", "mm", "einsum"}
_HIGH = {"layer_norm", "rms_norm", "group_norm", "softmax", "mse_loss"}
_HIGH |= {"pow", "__pow__", "rsqrt", "exp", "log"}


class Meter(TorchDispatchMode):
    """Counts `flops` (a multiply-add is two), `live` bytes allocated inside, and their `peak`.

    Tensors in `known` existed before and are not counted. Kernels' workspaces are not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _result(func, args, kwargs)
        packet = func._overloadpacket
        if packet in _FLOPS:
            self.flops += int(_FLOPS[packet](*args, **kwargs, out_val=out))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self._allocated(value.untyped_storage())
        return out

    def _allocated(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Kernels(TorchFunctionMode):
    """Makes meta tensors take a GPU's kernels: fused attention, and autocast to `low` if given."""

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if self.low and name in _LOW:
            args, kwargs = _cast(args, kwargs, torch.float32, self.low)
        elif self.low and name in _HIGH:
            args, kwargs = _cast(args, kwargs, self.low, torch.float32)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        dtype = self.low or query.dtype
        query, key, value = (t.to(dtype) for t in (query, key, value))
        # Neither keeps the square of the sequence; the CPU's takes fp32; both save the same.
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if dtype != torch.float32:
            fused = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = fused(query, key, value, scale=kwargs.get("scale"))[0]
        return out


def checkpoint_blocks(transformer: Any, kernels: Callable[[], Any]) -> None:
    """Gradient checkpointing as diffusers sets it, with `kernels` around the recomputation too."""

    def recompute(block: nn.Module, *args: Any) -> Any:
        contexts = lambda: (contextlib.nullcontext(), kernels())  # noqa: E731
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)

    transformer.enable_gradient_checkpointing(recompute)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _forward_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _backward_flops(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


# PyTorch's own registry leaves the CPU's fused attention out.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}


class _Layout(NamedTuple):
    """Of a tensor on the meta device, which has nothing else."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


# What calls gave: the blocks of a model make the same ones, and PyTorch works out each in Python.
_RESULTS: dict[Any, tuple[Any, ...]] = {}


def _result(func: Any, args: Any, kwargs: Any) -> Any:
    """func(*args, **kwargs), from memory where an equal call made new meta tensors alone."""
    if not _is_functional(func):
        return func(*args, **kwargs)
    key = func, _layout(args), _layout(tuple(kwargs.items()))
    if (known := _RESULTS.get(key)) is None:
        out = func(*args, **kwargs)
        values = out if isinstance(out, tuple) else (out,)
        if _are_new(values, (args, kwargs)):
            _RESULTS[key] = _layout(values)
        return out
    made = tuple(_made(value) if isinstance(value, _Layout) else value for value in known)
    return made if len(made) > 1 else made[0]


def _are_new(values: tuple[Any, ...], arguments: Any) -> bool:
    """Whether they are meta tensors (or None) that share no storage with an argument."""
    given = {t.untyped_storage()._cdata for t in tree_leaves(arguments) if isinstance(t, Tensor)}
    made = [value for value in values if value is not None]
    return all(
        isinstance(t, Tensor) and t.is_meta and t.untyped_storage()._cdata not in given
        for t in made
    )


@functools.cache
def _is_functional(func: Any) -> bool:
    """Neither writes to an argument nor returns a view of one."""
    schema = func._schema
    return all(value.alias_info is None for value in [*schema.arguments, *schema.returns])


def _layout(value: Any) -> Any:
    """What a result depends on, hashable: 2, 2.0 and True differ."""
    if isinstance(value, Tensor):
        return _Layout(value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, tuple | list):
        return tuple(map(_layout, value))
    return (type(value), value) if isinstance(value, bool | float) else value


def _made(layout: _Layout) -> Tensor:
    return torch.empty_strided(
        layout.shape, layout.stride, dtype=layout.dtype, device=layout.device
    )


def _cast(args: Any, kwargs: Any, of: torch.dtype, to: torch.dtype) -> tuple[Any, Any]:
    def cast(value: Any) -> Any:
        return value.to(to) if isinstance(value, Tensor) and value.dtype == of else value

    return tuple(cast(value) for value in args), {
        name: cast(value) for name, value in kwargs.items()
    }
