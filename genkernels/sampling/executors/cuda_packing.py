"""A sampling program packed for the CUDA executor: weights in the order in which its threads read them.

Those of the pixel phase lie apart, row by row with the bias behind each, since as many of them as possible stay in
shared memory; csrc/cuda/sampler/pixel.h reads them. Those of the row phase lie in blocks of 16 rows and 8 columns, as
the matrix instructions of csrc/cuda/sampler/row.h take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..program.program import Program
from .layout import Layout, up
from .packing import Packed, Packer

_QUAD = 4  # numbers that a thread reads at once; rows of a weight that it multiplies at once
_WARP = 32
_ROWS, _COLUMNS = 16, 8  # of a weight in one step of a warp in the row phase


@dataclass(eq=False)
class Plan:
    """A native plan with the arrays on the device that it points into."""

    native: Any
    tables: Tensor  # uint8
    weights: Tensor  # of the pixel phase
    floats: Tensor
    layout: Layout


def build(program: Program, native: Any) -> Plan:
    """Packs a program for the module ``native``, whose kernels run where the program is."""
    packer = _CudaPacker(program)
    weights, floats = torch.cat([torch.zeros(_QUAD), *packer.weights]), torch.cat(packer.floats)
    plan = native.CudaSamplerPlan(
        records=packer.records.by_name(), weight_count=weights.numel(), float_count=floats.numel()
    )
    tables = torch.frombuffer(bytearray(plan.tables()), dtype=torch.uint8)
    device = program.table.device
    return Plan(plan, tables.to(device), weights.to(device), floats.to(device), packer.layout)


class _CudaPacker(Packer):
    segment = _WARP  # each is read by one warp

    def __init__(self, program: Program) -> None:
        self.weights: list[Tensor] = []
        self.weight_count = _QUAD  # the first ones are there for a plan without any
        super().__init__(program)

    def pack(self, weight: Tensor, bias: Tensor | None) -> Packed:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if self.whole_rows:
            filled = weight.new_zeros(up(len(bias), _ROWS))
            filled[: len(bias)] = bias
            return Packed(self.keep(blocks(weight)), self.keep(filled))
        packed = rows_with_bias(weight, bias).reshape(-1)
        self.weights.append(packed)
        self.weight_count += packed.numel()
        return Packed(self.weight_count - packed.numel())


def rows_with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """[rows, reductions] as [rows, reductions, bias], both of them filled up to whole quads with zeros.

    A warp takes as many rows at once as its lanes allow, so their number is a multiple of that.
    """
    rows, reductions = weight.shape
    columns = up(reductions, _QUAD)
    lanes = _QUAD
    while lanes < _WARP and lanes * _QUAD < columns:
        lanes *= 2
    packed = weight.new_zeros(up(rows, _QUAD * _WARP // lanes), columns + _QUAD)
    packed[:rows, :reductions] = weight
    packed[:rows, columns] = bias
    return packed


def blocks(weight: Tensor) -> Tensor:
    """[rows, reductions] as [blocks of 16 rows][steps of 8 columns][lane][4].

    Lane 4 r + w has of rows r and r + 8 (first and last pair) columns w and w + 4.
    """
    rows, reductions = weight.shape
    filled = weight.new_zeros(up(rows, _ROWS), up(reductions, _COLUMNS))
    filled[:rows, :reductions] = weight
    split = filled.view(-1, 2, 8, filled.shape[1] // _COLUMNS, 2, 4)  # [block, pair, r, step, word, w]
    return split.permute(0, 3, 2, 5, 1, 4).contiguous()
