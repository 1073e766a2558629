"""Bytes that autograd keeps for backward."""

import torch
from torch import Tensor


def kept_bytes(function) -> int:
    """Bytes that the graph of function() holds for its backward, each storage once."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function()
    del y
    return sum(storages.values())
