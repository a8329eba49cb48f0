"""Counts the bytes that code would hold on a GPU, on tensors with sizes and no values."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

ELSEWHERE = torch.device("meta")
"""Stands for the host's memory: the tracker tells devices apart."""
GIB = 2**30


class Counter(TorchDispatchMode):
    """Counts the bytes that tensors hold on the device, and the most that they held."""

    def __init__(self) -> None:
        super().__init__()
        self.known = WeakIdKeyDictionary()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a number that the code asks for: an order of photos
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device != ELSEWHERE:
                storage = tensor.untyped_storage()
                if storage not in self.known:
                    self.known[storage] = size = storage.nbytes()
                    self._add(size)
                    weakref.finalize(storage, self._add, -size)
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def replaced(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move a module as Module._apply does, by new parameters: those of weightless tensors cannot be swapped."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is None:
                continue
            changed = change(weight.detach())
            if (changed.dtype, changed.device) != (weight.dtype, weight.device):  # else another module may share it
                part._parameters[name] = nn.Parameter(changed, requires_grad=weight.requires_grad)
    return module
