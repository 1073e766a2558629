# The native core. Private: use genkernels.ops and genkernels.nn. Kept equal to csrc/bindings.cpp by a test.
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

# The machine's peak: 1e9 operations and 1e9 bytes per second.
def fma_peak_gflops(threads: int, seconds: float) -> float: ...
def copy_bandwidth_gbs(threads: int, seconds: float, bytes: int) -> float: ...
def openmp_max_threads() -> int: ...
def openmp_team_size(threads: int) -> int: ...

# What was built. cuda_device_status exists only where the CUDA part was compiled.
def build_info() -> dict[str, Any]: ...
def cuda_device_status() -> DeviceStatus: ...

# Masked convolution. Tensors are addresses with the strides of [N, C, H, W], weights with those of (out, in, tap);
# 0 stands for a tensor that is not there. `image` is N, H, W. False where memory for scratch ran out.
_Strides = tuple[int, int, int, int]
_WeightStrides = tuple[int, int, int]

class MaskedConvPlan:
    def __init__(
        self,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
        centre_end: list[int],
        centre_begin: list[int],
        in_order: list[int],
        out_order: list[int],
    ) -> None: ...
    def forward(
        self,
        storage: int,
        threads: int,
        image: tuple[int, int, int],
        x: int,
        x_strides: _Strides,
        weight: int,
        weight_strides: _WeightStrides,
        bias: int,
        relu: bool,
        y: int,
        y_strides: _Strides,
    ) -> bool: ...
    def backward(
        self,
        storage: int,
        threads: int,
        image: tuple[int, int, int],
        grad_y: int,
        grad_y_strides: _Strides,
        x: int,
        x_strides: _Strides,
        y: int,
        y_strides: _Strides,
        weight: int,
        weight_strides: _WeightStrides,
        grad_x: int,
        grad_x_strides: _Strides,
        grad_weight: int,
        grad_weight_strides: _WeightStrides,
        grad_bias: int,
    ) -> bool: ...

# Wavefront LSTM. Tensors are addresses with the strides of [N, C, H, W]; 0 stands for one that is not there. `sizes`
# are N, h, H, W; a walk is (mirrored, gates, strides, weight, h0, c0, hidden, strides, saved); its gradients are
# (grad_hidden, strides, grad_gates, strides, grad_weight, grad_h0, grad_c0). False where memory for scratch ran out.
_Walk = tuple[bool, int, _Strides, int, int, int, int, _Strides, int]
_WalkGradients = tuple[int, _Strides, int, _Strides, int, int, int]

def wavefront_lstm_forward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: list[int],
    walks: list[_Walk],
) -> bool: ...
def wavefront_lstm_backward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: list[int],
    walks: list[_Walk],
    gradients: list[_WalkGradients],
) -> bool: ...

# Convolution + batch norm + activation. `sizes` are batch, channels, height, width of the small image; the last three
# of the large one; kernel, stride and padding (h, w). A tensor comes with the strides of [N, C, H, W], a weight with
# those of [small, large, kh, kw]; `coefficients` [7, C] are mean, rstd, gamma, beta, gamma * rstd, mean g, mean g zhat.
# False where memory for scratch ran out.
_ConvSizes = tuple[int, ...]
_Operand = tuple[int, _Strides]
_Activation = tuple[int, float]

def conv_forward(
    storage: int,
    threads: int,
    sizes: _ConvSizes,
    up: bool,
    x: _Operand,
    weight: _Operand,
    y: _Operand,
    scale: int,
    shift: int,
    activation: _Activation,
    statistics: int,
) -> bool: ...
def conv_backward(
    storage: int,
    threads: int,
    sizes: _ConvSizes,
    up: bool,
    grad: _Operand,
    other: int,
    coefficients: int,
    activation: _Activation,
    x: _Operand,
    weight: _Operand,
    grad_x: _Operand,
    grad_weight: _Operand,
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
