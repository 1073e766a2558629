"""``ConvTransposeBnAct2d`` and ``ConvBnAct2d``: convolution, batch norm and activation as one layer."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.conv_bn_act.heuristics import prefers_torch
from ..ops.core.activation import act, check_activation
from ..ops.core.prepared_call import nothing_watches

_Size = int | tuple[int, int]


def norm_options(bn: nn.BatchNorm2d | nn.SyncBatchNorm | None) -> dict[str, Any]:
    """What a batch norm means to the operator in this call; counts the batch, as nn.BatchNorm2d does."""
    if bn is None:
        return {}
    momentum = 0.0 if bn.momentum is None else bn.momentum
    if bn.training and bn.track_running_stats and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:  # the average over all batches
            momentum = 1.0 / bn.num_batches_tracked.item()
    tracked = bn.running_mean is not None
    update = not bn.training or bn.track_running_stats
    options: dict[str, Any] = {
        "batch_norm": True,
        "bn_weight": bn.weight,
        "bn_bias": bn.bias,
        "running_mean": bn.running_mean if update else None,
        "running_var": bn.running_var if update else None,
        "training": bn.training or not tracked,
        "momentum": momentum,
        "eps": bn.eps,
    }
    if isinstance(bn, nn.SyncBatchNorm) and bn.training:
        options["sync"] = True if bn.process_group is None else bn.process_group
    return options


class _Block(nn.Module):
    """What both layers add to torch.nn's convolution."""

    bn: nn.BatchNorm2d | nn.SyncBatchNorm | None
    activation: str | None
    negative_slope: float

    def _add(
        self, out_channels: int, batch_norm: bool, activation: str | None, negative_slope: float,
        eps: float, momentum: float | None, sync: Any, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        check_activation(activation, negative_slope)
        self.activation = activation
        self.negative_slope = negative_slope
        options: dict[str, Any] = {"eps": eps, "momentum": momentum, "device": device, "dtype": dtype}
        if not batch_norm:
            self.bn = None
        elif sync is False or sync is None:
            self.bn = nn.BatchNorm2d(out_channels, **options)
        else:
            group = None if sync is True else sync
            self.bn = nn.SyncBatchNorm(out_channels, process_group=group, **options)

    def reset_parameters(self) -> None:
        """New random weights for the convolution, as in torch.nn, and the batch norm of a new layer."""
        super().reset_parameters()  # type: ignore[misc]
        norm = self._modules.get("bn")  # not there yet while the convolution is made
        if norm is not None:
            norm.reset_parameters()  # type: ignore[operator]

    def _block_options(self) -> dict[str, Any]:
        """The keyword arguments of the operator that this call takes."""
        return {"activation": self.activation, "negative_slope": self.negative_slope, **norm_options(self.bn)}

    def _is_for_torch(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> bool:
        """Whether PyTorch's own operators are quicker, and nothing about the call needs this library's checks."""
        shape, bn = x.shape, self.bn
        return (
            nothing_watches(x)
            and len(shape) == 4
            and x.dtype == weight.dtype
            and shape[1] == weight.shape[0 if transposed else 1]
            and weight.is_cpu
            and shape[0] > 0
            and (bn is None or type(bn) is nn.BatchNorm2d)
            and prefers_torch(x, weight, bias, self, bn, self.activation, self.negative_slope)
        )

    def _norm_and_act(self, z: Tensor) -> Tensor:
        bn = self.bn
        y = z if bn is None else bn.forward(z)
        return act(y, self.activation or "none", self.negative_slope)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return f"{text}, negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else text


_DOC = """
    Takes the arguments of ``nn.{base}``, of which ``groups`` and ``dilation`` must be 1 and ``padding_mode`` "zeros",
    and adds:

    Args:
        bias: whether the convolution has a bias; None means "unless there is a batch norm", under which it is idle.
        batch_norm: whether a batch norm follows.
        activation: None, "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu", at least 0.
        eps, momentum: of the batch norm, as for ``nn.BatchNorm2d``; momentum None averages over all batches.
        sync: take the batch statistics over all processes (True), or over those of a process group.

    The ``state_dict`` holds ``weight``, ``bias`` where there is one, and those of ``bn``, a real ``nn.BatchNorm2d``
    (``nn.SyncBatchNorm`` with ``sync``): ``bn.weight``, ``bn.bias``, ``bn.running_mean``, ``bn.running_var``,
    ``bn.num_batches_tracked``. ``bn`` is never called: the layer reads its parameters, buffers, ``eps``, ``momentum``
    and ``training``, so whatever is done to it (initialised, frozen by ``eval()``, converted by
    ``nn.SyncBatchNorm.convert_sync_batchnorm``) holds.

    Shape: [N, in_channels, H, W] or [in_channels, H, W] -> [N, out_channels, H', W'], as ``nn.{base}``.

    Source: Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks".
    """


class ConvTransposeBnAct2d(_Block, nn.ConvTranspose2d):
    __doc__ = "``act(bn(conv_transpose(x)))``, a block of a DCGAN generator.\n" + _DOC.format(base="ConvTranspose2d")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        output_padding: _Size = 0,
        groups: int = 1,
        bias: bool | None = None,
        dilation: _Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        batch_norm: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: Any = False,
    ) -> None:
        _check_unused(groups, dilation, padding_mode)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups,
            not batch_norm if bias is None else bias, dilation, padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self._add(out_channels, batch_norm, activation, negative_slope, eps, momentum, sync, device, dtype)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding: Any = self.padding
        output_padding: Any = self.output_padding
        if output_size is not None:
            output_padding = tuple(
                self._output_padding(
                    input, output_size, list(self.stride), list(padding), list(self.kernel_size), 2, [1, 1]
                )
            )
        weight, bias = self.weight, self.bias  # once a call: a parametrization computes them each time they are read
        if self._is_for_torch(input, weight, bias, transposed=True):
            z = F.conv_transpose2d(input, weight, bias, self.stride, padding, output_padding)
            return self._norm_and_act(z)
        return ops.conv_transpose2d_bn_act(
            input,
            weight,
            bias,
            stride=self.stride,
            padding=padding,
            output_padding=output_padding,
            **self._block_options(),
        )


class ConvBnAct2d(_Block, nn.Conv2d):
    __doc__ = "``act(bn(conv(x)))``, a block of a DCGAN discriminator.\n" + _DOC.format(base="Conv2d")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool | None = None,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        batch_norm: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: Any = False,
    ) -> None:
        _check_unused(groups, dilation, padding_mode)
        if isinstance(padding, str):
            raise ValueError(f"padding: expected one or two whole numbers; got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
            not batch_norm if bias is None else bias, padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self._add(out_channels, batch_norm, activation, negative_slope, eps, momentum, sync, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        weight, bias = self.weight, self.bias  # once a call: a parametrization computes them each time they are read
        if self._is_for_torch(input, weight, bias, transposed=False):
            return self._norm_and_act(F.conv2d(input, weight, bias, self.stride, padding))
        return ops.conv2d_bn_act(input, weight, bias, stride=self.stride, padding=padding, **self._block_options())


def _check_unused(groups: int, dilation: _Size, padding_mode: str) -> None:
    spread = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    for name, value, expected in (
        ("groups", groups, 1), ("dilation", spread, (1, 1)), ("padding_mode", padding_mode, "zeros"),
    ):  # fmt: skip
        if value != expected:
            raise ValueError(f"{name}: a fused block takes {expected!r} only; got {value!r}")
