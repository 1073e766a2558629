"""A sampling program packed for the native CPU executor: weights in panels as wide as this machine's registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..program.program import Program
from .layout import Layout, up
from .packing import Packed, Packer


@dataclass(eq=False)
class Plan:
    """A native plan with the floats that it points into."""

    native: Any
    floats: Tensor
    layout: Layout


def build(program: Program) -> Plan:
    """Packs a float32 program for this machine."""
    packer = _CpuPacker(program)
    packer.keep(torch.zeros(64))  # loads of whole vectors may reach beyond the last
    floats = torch.cat(packer.floats)
    native = backends.require_native().SamplerPlan(
        records=packer.records.by_name(), floats=floats.data_ptr(), float_count=floats.numel()
    )
    return Plan(native, floats, packer.layout)


class _CpuPacker(Packer):
    segment = 512
    panel: int

    def __init__(self, program: Program) -> None:
        self.panel, self.lanes = backends.require_native().sampler_panel()
        super().__init__(program)

    def pack(self, weight: Tensor, bias: Tensor | None) -> Packed:
        filled = torch.zeros(up(len(weight), self.panel))
        if bias is not None:
            filled[: len(weight)] = bias
        return Packed(self.keep(self.packed(weight)), self.keep(filled))

    def packed(self, weight: Tensor) -> Tensor:
        """[rows, columns] as panels [columns][panel], the last one as narrow as whole registers allow."""
        rows = len(weight)
        whole = rows // self.panel * self.panel
        rest = weight.new_zeros(up(rows - whole, self.lanes), weight.shape[1])
        rest[: rows - whole] = weight[whole:]
        panels = weight[:whole].reshape(rows // self.panel, self.panel, weight.shape[1]).transpose(1, 2)
        return torch.cat([panels.reshape(-1), rest.t().reshape(-1)])
