"""``MaskedConv2d``: ``nn.Conv2d`` whose taps on future pixels do not exist."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.masked_conv.functional import check_dilation, check_options
from ..ops.masked_conv.mask import MaskSpec, mask_tensor


class MaskedConv2d(nn.Conv2d):
    """Masked convolution layer of PixelRNN and PixelCNN; a drop-in for the usual ``nn.Conv2d`` subclass.

    Takes the arguments of ``nn.Conv2d``, of which ``kernel_size`` must be odd, ``stride`` and ``groups`` 1,
    ``padding_mode`` "zeros" and ``padding`` "same" (or the number that equals it), and adds:

    Args:
        mask_type: "A" hides the pixel itself, "B" shows it.
        channel_groups: colour groups that order the channels inside a pixel; 1 for none.
        group_layout: "blocks" (group of channel c is ``c * groups // channels``) or "interleaved" (``c % groups``).
        activation: None or "relu", applied to the result in the same pass.

    Shape: [N, in_channels, H, W] or [in_channels, H, W] -> the same with ``out_channels``. float64, float32,
    bfloat16, float16; contiguous and channels_last inputs give an output of their own layout.

    The ``state_dict`` holds ``weight`` [out, in, kh, kw] and ``bias`` [out]; a checkpoint that carries a ``mask``
    buffer, as most public versions write, loads too. Masked entries of ``weight`` are never read and get a gradient
    of exactly zero.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        mask_type: str,
        channel_groups: int = 1,
        group_layout: str = "blocks",
        activation: str | None = None,
    ) -> None:
        check_options(mask_type, channel_groups, group_layout, activation)
        spread = check_dilation(dilation)
        for name, value, expected in (
            ("stride", (stride, stride) if isinstance(stride, int) else tuple(stride), (1, 1)),
            ("groups", groups, 1),
            ("padding_mode", padding_mode, "zeros"),
        ):
            if value != expected:
                raise ValueError(f"{name}: a masked convolution takes {expected!r} only; got {value!r}")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < channel_groups:
                raise ValueError(f"{name}: expected at least channel_groups = {channel_groups}; got {channels}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device=device, dtype=dtype,
        )  # fmt: skip
        kernel = self.kernel_size
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size: expected odd numbers, so that there is a centre tap; got {kernel}")
        same = tuple(k // 2 * d for k, d in zip(kernel, spread, strict=True))
        if self.padding not in ("same", same):
            raise ValueError(f"padding: expected 'same' or its equal here, {same}; got {self.padding!r}")
        self.mask_type = mask_type
        self.channel_groups = channel_groups
        self.group_layout = group_layout
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return ops.masked_conv2d(
            input,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            channel_groups=self.channel_groups,
            group_layout=self.group_layout,
            dilation=self.dilation,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, mask_type={self.mask_type!r}"
        if self.channel_groups != 1:
            text += f", channel_groups={self.channel_groups}, group_layout={self.group_layout!r}"
        return text if self.activation is None else f"{text}, activation={self.activation!r}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        # Public versions register their mask as a buffer; here it follows from the layer's arguments, so a mask
        # that says otherwise means a layer built with the wrong ones.
        mask = state_dict.pop(prefix + "mask", None)
        if mask is not None and not self._is_own_mask(mask):
            error_msgs.append(
                f"{prefix}mask: the checkpoint's mask differs from this layer's (mask_type={self.mask_type!r}, "
                f"channel_groups={self.channel_groups}, group_layout={self.group_layout!r})"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _is_own_mask(self, mask: Tensor) -> bool:
        own = self.live_taps() != 0
        fits = mask.dim() <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], own.shape[::-1], strict=False))
        return fits and torch.equal((mask != 0).cpu().expand_as(own), own)

    def live_taps(self) -> Tensor:
        """The mask, 1 where ``weight`` is read: float32 on the CPU, [out_channels, in_channels, kh, kw]."""
        kernel = (self.kernel_size[0], self.kernel_size[1])
        spec = MaskSpec(
            self.out_channels, self.in_channels, kernel, self.mask_type, self.channel_groups, self.group_layout
        )
        return mask_tensor(spec).clone()
