# The native core. Private: use genkernels.ops and genkernels.nn. Kept equal to csrc/bindings/ by a test.
from collections.abc import Callable
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
# are N, h, H, W; `convolution` is the channels, kernel height and width, and live taps of the convolution that gives
# the gates, zeros where they are given; a walk is (mirrored, gates, x, weight, input_weight, (input_bias, h0, c0),
# hidden, saved), images and weights with their strides; its gradients are (grad_hidden, strides, grad_gates, strides,
# grad_weight, grad_h0, grad_c0). False where memory for scratch ran out.
_Image = tuple[int, _Strides]
_Weight = tuple[int, tuple[int, ...]]  # strides of out, in, tap
_Walk = tuple[bool, _Image, _Image, _Weight, _Weight, tuple[int, ...], _Image, int]
_WalkGradients = tuple[int, _Strides, int, _Strides, int, int, int]

def wavefront_lstm_forward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: list[int],
    convolution: tuple[int, int, int, int],
    walks: list[_Walk],
) -> bool: ...
def wavefront_lstm_backward(
    storage: int,
    threads: int,
    sizes: tuple[int, int, int, int],
    diagonal: bool,
    taps: list[int],
    convolution: tuple[int, int, int, int],
    walks: list[_Walk],
    gradients: list[_WalkGradients],
) -> bool: ...

# Convolution + batch norm + activation. A tensor comes with the strides of [N, C, H, W], a weight with those of
# [low, high, kh, kw]; `transposed` is that of the forward pass; `coefficients` [7, C] are mean, rstd, gamma, beta,
# gamma * rstd, mean g, mean g zhat; `sizes` are images, channels, pixels. False where memory for scratch ran out.
_Pair = tuple[int, int]
_Operand = tuple[int, _Strides]
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
    shape: ConvShape,
    transposed: bool,
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

# Sampling programs. Records of whole numbers are those of csrc/sampler_records.h; constants are (address, stride from
# image to image, offset, length). `levels`, `free` (bytes) and `uniforms` (float64) are [images, C, H, W], `logits`
# float32 [images, levels, C, H, W] or 0. False where memory for the values ran out. sampler_panel: (columns, lanes).
_Records = list[list[int]]
_Constant = tuple[int, int, int, int]

def sampler_panel() -> tuple[int, int]: ...

class SamplerPlan:
    def __init__(
        self,
        sizes: list[int],
        floats: int,
        float_count: int,
        buffers: _Records,
        places: _Records,
        instructions: _Records,
        groups: _Records,
        runs: _Records,
        phases: _Records,
    ) -> None: ...
    def run(
        self,
        threads: int,
        images: int,
        levels: int,
        free: int,
        uniforms: int,
        logits: int,
        temperature: float,
        top_k: int,
        last: tuple[int, int, int],
        maps: list[_Constant],
        vectors: list[_Constant],
        row_done: Callable[[int], None],
    ) -> bool: ...

# The same on a CUDA device; there only where the CUDA part was compiled. `sizes` are N, h, H, W; `exact`: float32
# products, not TF32; `limits` are multiprocessors, bytes of shared memory of a block, blocks of a cluster. Channels are
# next to each other, so strides are those of [N, H, W]. A walk forward is (mirrored, gates, strides, hidden, strides,
# weight, h0, c0, packed), backward (mirrored, grad_hidden, strides, weight, h0, c0, packed, grad_gates, gathered,
# grad_c0); `packed` is scratch of as many bytes as the division says. A launch that fails raises RuntimeError.
_Strides3 = tuple[int, int, int]
_CudaWalk = tuple[bool, int, _Strides3, int, _Strides3, int, int, int, int]
_CudaWalkBackward = tuple[bool, int, _Strides3, int, int, int, int, int, int, int]

class CudaWavefrontPlan:
    def __init__(
        self,
        storage: int,
        exact: bool,
        sizes: tuple[int, int, int, int],
        walks: int,
        diagonal: bool,
        taps: list[int],
        limits: tuple[int, int, int],
    ) -> None: ...
    def fits(self) -> bool: ...
    def needed_bytes(self) -> int: ...
    def forward_division(self) -> dict[str, int]: ...
    def backward_division(self) -> dict[str, int]: ...
    def forward(self, device: int, stream: int, walks: list[_CudaWalk], saved: int) -> None: ...
    def backward(self, device: int, stream: int, walks: list[_CudaWalkBackward], saved: int) -> None: ...

# Likewise. `weights` are those of the pixel phase, `tables` what tables() gives; both and `floats` on the device, as is
# `memory`, float32 [images, floats of an image]: zero, or what is read outside of a value, and the vectors. A map is
# (address, stride from image to image).
class CudaSamplerPlan:
    def __init__(
        self,
        weight_count: int,
        float_count: int,
        sizes: list[int],
        buffers: _Records,
        places: _Records,
        instructions: _Records,
        groups: _Records,
        runs: _Records,
        phases: _Records,
    ) -> None: ...
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
        maps: list[tuple[int, int]],
        images: int,
        levels: int,
        free: int,
        uniforms: int,
        logits: int,
        temperature: float,
        top_k: int,
        last: tuple[int, int, int],
        undrawable: int,
    ) -> None: ...
