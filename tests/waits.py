"""What makes the host wait for a GPU, found without one.

The meta device has no values: whatever asks for one raises there, as `.item()`, `nonzero` or a
boolean index do. `Sending` counts the other way, copies from host memory. `Reading` counts, on a
CPU, the operators whose result a GPU's host would have to wait for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Their results are numbers for Python, or have a size that depends on values.
READS = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount),
}
MAKERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
COPIES = {Tensor.to, Tensor.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_}


class Sending(TorchFunctionMode):
    """Counts the tensors that the host would have to wait for while it sends them to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_meta:
            sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            made = func in MAKERS and not isinstance(args[-1], Tensor)
            # A kernel takes a number in host memory as its argument.
            sent = [t for t in sources if not t.is_meta and (t.ndim or func in COPIES)]
            # What does not lie in one piece is copied on the host first, to memory that can move.
            ahead = func is Tensor.to and (kwargs or {}).get("non_blocking", False)
            ahead = ahead and all(source.is_contiguous() for source in sent)
            self.count += made or bool(sent and not ahead)
        return out


class Reading(TorchDispatchMode):
    """Counts operators that wait, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        chosen = packet in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if packet in READS or chosen or func is aten.repeat_interleave.Tensor:
            self.counts[str(packet)] += 1
        return func(*args, **(kwargs or {}))
