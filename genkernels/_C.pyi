# The native core. Private: use genkernels.ops and genkernels.nn. Kept equal to csrc/bindings/ by a test.
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

class DeviceStatus(TypedDict):
    device_count: int
    reason: str
    driver_version: int
    runtime_version: int
    compute_capabilities: list[int]

# Instruction sets: "baseline", "avx2", "avx512".
def compiled_isas() -> list[str]: ...
def detected_isa() -> str: ...
def active_isa() -> str: ...

# Implementations of CPU operations: one of this name is tried first; which one ran last on this thread.
def force_implementation(name: str | None) -> None: ...
def last_implementation() -> str: ...

# The machine's peak: 1e9 operations and 1e9 bytes per second.
def fma_peak_gflops(threads: int, seconds: float) -> float: ...
def copy_bandwidth_gbs(threads: int, seconds: float, bytes: int) -> float: ...
def openmp_max_threads() -> int: ...
def openmp_team_size(threads: int) -> int: ...

# What was built. The functions on CUDA devices are there only where the CUDA part was compiled. A device's limits are
# multiprocessors, bytes of shared memory that a block can have, and blocks of a cluster.
def build_info() -> dict[str, Any]: ...
def cuda_device_status() -> DeviceStatus: ...
def cuda_device_limits(device: int) -> tuple[int, int, int]: ...

# A tensor: its address, 0 for one that is not there, and its strides in elements, those of [N, C, H, W]; of a masked
# weight those of (out, in, tap), all taps at one distance.
_Strides = tuple[int, int, int, int]
_Tensor = tuple[int, _Strides]
_MaskedWeight = tuple[int, tuple[int, int, int]]

# Masked convolution. `image` is N, H, W; `bias` and `grad_bias` are addresses; backward reads `y` where there is a
# ReLU. False where memory for scratch ran out.

class MaskedConvPlan:
    def __init__(
        self,
        storage: int,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
        centre_end: list[int],
        centre_begin: list[int],
        in_order: list[int],
        out_order: list[int],
        relu: bool,
    ) -> None: ...
    def forward(
        self,
        threads: int,
        image: tuple[int, int, int],
        x: _Tensor,
        weight: _MaskedWeight,
        bias: int,
        y: _Tensor,
    ) -> bool: ...
    def backward(
        self,
        threads: int,
        image: tuple[int, int, int],
        grad_y: _Tensor,
        x: _Tensor,
        y: _Tensor,
        weight: _MaskedWeight,
        grad_x: _Tensor,
        grad_weight: _MaskedWeight,
        grad_bias: int,
    ) -> bool: ...

# Wavefront LSTM. An image is an address with the strides of [N, C, H, W], a weight one with those of (out, in, tap), a
# vector an address; 0 stands for a tensor that is not there. `sizes` are N, h, H, W; `convolution` is the one that
# gives the gates, None where they are given. False where memory for scratch ran out.
_Image = tuple[int, tuple[int, ...]]
_Weight = tuple[int, tuple[int, ...]]

class WavefrontConvolution:
    def __init__(self, channels: int, kernel: Sequence[int], live_taps: int) -> None: ...

class WavefrontDirection:
    def __init__(
        self,
        mirrored: bool,
        gates: _Image,
        x: _Image,
        weight: _Weight,
        input_weight: _Weight,
        input_bias: int,
        h0: int,
        c0: int,
        hidden: _Image,
        saved: int,
    ) -> None: ...

class WavefrontGradients:
    def __init__(
        self, grad_hidden: _Image, grad_gates: _Image, grad_weight: int, grad_h0: int, grad_c0: int
    ) -> None: ...

def wavefront_lstm_forward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: Sequence[int],
    convolution: WavefrontConvolution | None,
    directions: list[WavefrontDirection],
) -> bool: ...
def wavefront_lstm_backward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: Sequence[int],
    convolution: WavefrontConvolution | None,
    directions: list[WavefrontDirection],
    gradients: list[WavefrontGradients],
) -> bool: ...

# Convolution + batch norm + activation. A tensor comes with the strides of [N, C, H, W], a weight with those of
# [low, high, kh, kw]; `transposed` is that of the forward pass; `coefficients` [7, C] are mean, rstd, gamma, beta,
# gamma * rstd, mean g, mean g zhat; `sizes` are images, channels, pixels. False where memory for scratch ran out.
_Pair = tuple[int, int]
_Activation = tuple[int, float]

class ConvShape:
    def __init__(
        self,
        batch: int,
        low_channels: int,
        high_channels: int,
        low_size: _Pair,
        high_size: _Pair,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,
    ) -> None: ...

# The implementation that a forward pass takes where its numbers are even, by its name in conv_bn_act/dispatch.cpp.
def conv_implementation(shape: ConvShape, transposed: bool) -> str: ...
def conv_forward(
    storage: int,
    threads: int,
    shape: ConvShape,
    transposed: bool,
    x: _Tensor,
    weight: _Tensor,
    y: _Tensor,
    scale: int,
    shift: int,
    activation: _Activation,
    statistics: int,
) -> bool: ...
def conv_backward(
    storage: int,
    threads: int,
    shape: ConvShape,
    transposed: bool,
    grad: _Tensor,
    other: int,
    coefficients: int,
    activation: _Activation,
    x: _Tensor,
    weight: _Tensor,
    grad_x: _Tensor,
    grad_weight: _Tensor,
) -> bool: ...
def norm_forward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int],
    channels_last: bool,
    z: int,
    coefficients: int,
    activation: _Activation,
    y: int,
) -> None: ...
def norm_gradient_sums(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int],
    channels_last: bool,
    grad: int,
    other: int,
    coefficients: int,
    activation: _Activation,
    sums: int,
) -> bool: ...
def instance_norm_forward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int],
    channels_last: bool,
    x: int,
    affine: tuple[int, int],
    eps: float,
    activation: _Activation,
    y: int,
    statistics: int,
) -> None: ...
def instance_norm_backward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int],
    channels_last: bool,
    grad: int,
    x: int,
    affine: tuple[int, int],
    statistics: int,
    activation: _Activation,
    grad_x: int,
    sums: int,
) -> None: ...
def softmax_nll_forward(
    threads: int,
    sizes: tuple[int, int, int, int],
    live: list[int],
    x: int,
    weight: int,
    bias: int,
    target: int,
    nll: int,
    log_sum_exp: int,
) -> bool: ...
def softmax_nll_backward(
    threads: int,
    sizes: tuple[int, int, int, int],
    live: list[int],
    x: int,
    weight: int,
    bias: int,
    target: int,
    log_sum_exp: int,
    grad: int,
    nll: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
) -> bool: ...

# Sampling programs. `records` are those of csrc/sampler_records.h by name, each a dict of its fields by name. Of a run,
# `levels`, `free` (bytes) and `uniforms` (float64) are [images, C, H, W], `logits` float32 [images, levels, C, H, W] or
# 0, `last` is (row, column, colour); it gives a sub-pixel whose logits are no distribution, or -1. Constants are
# (address, stride from image to image). sampler_panel: (columns, lanes).
_Records = dict[str, Any]
_Constant = tuple[int, int]

def sampler_panel() -> tuple[int, int]: ...

class SamplerRun:
    def __init__(
        self,
        images: int,
        levels: int,
        free: int,
        uniforms: int,
        logits: int,
        temperature: float,
        top_k: int,
        last: tuple[int, int, int],
    ) -> None: ...

class SamplerPlan:
    def __init__(self, records: _Records, floats: int, float_count: int) -> None: ...
    def run(
        self,
        threads: int,
        run: SamplerRun,
        maps: list[_Constant],
        vectors: list[_Constant],
        row_done: Callable[[int], None],
    ) -> int: ...

# A run that stops before every draw that is not `known` (bytes [C, H, W]), with what is drawn from in `parameters`,
# float32 [images, channels], or [images, predictions, channels] where it stops once for all colours of a pixel. The
# levels that stand in the run's are shown to the model when it goes on. Gives (row, column, colour); None at the end.
class SamplerWalk:
    def __init__(
        self,
        plan: SamplerPlan,
        run: SamplerRun,
        maps: list[_Constant],
        vectors: list[_Constant],
        known: int,
        together: bool,
        parameters: int,
    ) -> None: ...
    def next(self) -> tuple[int, int, int] | None: ...

# The same on a CUDA device; there only where the CUDA part was compiled. `sizes` are N, h, H, W; `exact`: float32
# products, not TF32; `limits` are multiprocessors, bytes of shared memory of a block, blocks of a cluster. An image is
# an address with the strides of [N, H, W], its channels are next to each other; `packed` is scratch of as many bytes as
# the division says. A launch that fails raises RuntimeError.
_CudaImage = tuple[int, tuple[int, int, int]]

class CudaWavefrontForward:
    def __init__(
        self, mirrored: bool, gates: _CudaImage, hidden: _CudaImage, weight: int, h0: int, c0: int, packed: int
    ) -> None: ...

class CudaWavefrontBackward:
    def __init__(
        self,
        mirrored: bool,
        grad_hidden: _CudaImage,
        weight: int,
        h0: int,
        c0: int,
        packed: int,
        grad_gates: int,
        gathered: int,
        grad_c0: int,
    ) -> None: ...

class CudaWavefrontPlan:
    def __init__(
        self,
        storage: int,
        exact: bool,
        sizes: tuple[int, int, int, int],
        directions: int,
        diagonal: bool,
        taps: Sequence[int],
        limits: tuple[int, int, int],
    ) -> None: ...
    def fits(self) -> bool: ...
    def needed_bytes(self) -> int: ...
    def forward_division(self) -> dict[str, int]: ...
    def backward_division(self) -> dict[str, int]: ...
    def forward(self, device: int, stream: int, directions: list[CudaWavefrontForward], saved: int) -> None: ...
    def backward(self, device: int, stream: int, directions: list[CudaWavefrontBackward], saved: int) -> None: ...

# Likewise. `weights` are those of the pixel phase, `tables` what tables() gives; both and `floats` on the device, as is
# `memory`, float32 [images, floats of an image]: zero, or what is read outside of a value, and the vectors.
class CudaSamplerPlan:
    def __init__(self, records: _Records, weight_count: int, float_count: int) -> None: ...
    def tables(self) -> bytes: ...
    def division(self, batch: int, limits: tuple[int, int, int]) -> dict[str, int]: ...
    def run(
        self,
        device: int,
        stream: int,
        limits: tuple[int, int, int],
        tables: int,
        weights: int,
        floats: int,
        memory: int,
        maps: list[_Constant],
        run: SamplerRun,
        undrawable: int,
    ) -> None: ...
