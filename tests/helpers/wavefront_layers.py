"""The layers that the tests use: their tensors, their functions, and the same in plain PyTorch.

Nothing here is taken from the code under test.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genkernels.ops import diagonal_bilstm_layer, diagonal_lstm_layer, row_lstm_layer
from helpers.wavefront_directions import DIAGONAL, ROW, plain_bilstm, plain_sweep

FUNCTIONS = {"row": row_lstm_layer, "diagonal": diagonal_lstm_layer, "both": diagonal_bilstm_layer}
KERNELS = {"row": (1, 3), "diagonal": (1, 1), "both": (3, 3)}


@dataclass(frozen=True)
class LayerKind:
    """A layer function, called on x, input weights, input biases, state weights and initial states, in its order."""

    name: str
    mask_type: str = "B"

    def __str__(self) -> str:
        return f"{self.name}-{self.mask_type}"

    def __call__(self, *tensors: Tensor | None, checkpoint: bool = False) -> Tensor:
        return FUNCTIONS[self.name](*tensors, mask_type=self.mask_type, checkpoint=checkpoint)

    @property
    def sweeps(self) -> int:
        return 2 if self.name == "both" else 1

    def plain(self, *tensors: Tensor | None) -> Tensor:
        """``conv2d(x, weight * mask)``, then the sweeps pixel by pixel."""
        x, *others = tensors
        weights, biases, states = (
            others[: self.sweeps],
            others[self.sweeps : 2 * self.sweeps],
            others[2 * self.sweeps :],
        )
        height, width = KERNELS[self.name]
        mask = torch.arange(height * width) < height * width // 2 + (self.mask_type == "B")
        mask = mask.view(height, width).to(x.dtype)
        pad = (height // 2, width // 2)
        gates = [F.conv2d(x, w * mask, b, padding=pad) for w, b in zip(weights, biases, strict=True)]
        if self.name != "both":
            return plain_sweep(*gates, *states, ROW if self.name == "row" else DIAGONAL)
        zeros = x.new_zeros(states[0].shape[2])
        return plain_bilstm(*gates, *states[:2], *(zeros if t is None else t for t in states[2:]))


ROW_B, ROW_A = LayerKind("row"), LayerKind("row", "A")
DIAGONAL_B, BOTH_B, BOTH_A = LayerKind("diagonal"), LayerKind("both"), LayerKind("both", "A")
KINDS = (ROW_B, ROW_A, DIAGONAL_B, BOTH_B, BOTH_A)


def layer_inputs(
    kind: LayerKind,
    size: tuple[int, int] = (4, 5),
    *,
    batch: int = 2,
    channels: int = 4,
    units: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """All that the layer takes, of a size at which no gate is shut."""
    generator = torch.Generator().manual_seed(seed)
    taps = 3 if kind.name == "row" else 2

    def random(*shape: int, terms: int = 1) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) / terms**0.5).to(dtype)

    height, width = KERNELS[kind.name]
    sweeps = range(kind.sweeps)
    return [
        random(batch, channels, *size),
        *(random(4 * units, channels, height, width, terms=channels * height * width) for _ in sweeps),
        *(random(4 * units) for _ in sweeps),
        *(random(taps, 4 * units, units, terms=taps * units) for _ in sweeps),
        *(random(units) for _ in sweeps for _state in ("h0", "c0")),
    ]
