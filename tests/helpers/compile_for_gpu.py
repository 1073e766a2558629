"""Compilation of the Triton kernels for an H100 without one, for what the interpreter takes and the compiler refuses.

    python tests/helpers/compile_for_gpu.py

A stand-in for the driver names the target, and every launch stops after compiling, so the operations' own host code
decides what is compiled: the shapes that matter in the tiles they get on that GPU, then, in small tiles, the branches
for indices of 64 bits, where a variable that changes its type would show, and for float32. Prints each kernel with what
the machine code holds; used by test_interpreted.py.
"""

import re

import torch
import triton
import triton.runtime.jit
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

PROCESSORS, SHARED_BYTES = 132, 232448


class Driver:
    """The part of Triton's driver that compiling reads."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def likelihoods(dtype: torch.dtype) -> None:
    from genkernels.ops.softmax_nll import gpu as softmax_nll

    rows, target = torch.empty(4096, 70, dtype=dtype), torch.zeros(4096, 3, dtype=torch.int64)
    layer = (torch.empty(3 * 256, 70, dtype=dtype), torch.empty(3 * 256, dtype=dtype), target)
    nll, log_sum_exp = softmax_nll.forward(rows, *layer, [24, 47, 70])
    softmax_nll.backward(nll, rows, *layer, log_sum_exp, [24, 47, 70], (True, True, True))


def main() -> None:
    label = ""
    driver.set_active(Driver())
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        ptx = compiled.asm["ptx"]
        facts = {
            "shared": compiled.metadata.shared,
            "wgmma": ptx.count("wgmma.mma_async"),
            "cp.async": ptx.count("cp.async.c"),
            "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
            "cubin": len(compiled.asm["cubin"]),
        }
        print(label + self.__name__, *(f"{name}={value}" for name, value in facts.items()), flush=True)
        assert compiled.metadata.shared <= SHARED_BYTES

    triton.runtime.jit.JITFunction.run = compile_only
    from genkernels.ops.conv_bn_act import gpu as conv_bn_act
    from genkernels.ops.conv_bn_act.geometry import Geometry, GradientMeans, Norm
    from genkernels.ops.core.activation import Activation
    from genkernels.ops.instance_norm import gpu as instance_norm
    from genkernels.ops.masked_conv import gpu as masked_conv
    from genkernels.ops.masked_conv.mask import MaskSpec
    from genkernels.triton_conv import launch, tuning

    launch._limits = lambda t: (PROCESSORS, SHARED_BYTES)
    dtype = torch.bfloat16

    def images(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def gated(channels: int, batch: int, size: int) -> None:
        units = 2 * channels
        x, y, features = (images(batch, c, size, size) for c in (channels, units, 2 * units))
        weight, spec = images(2 * units, channels, 1, 3), MaskSpec(2 * units, channels, (1, 3), "B", 3, "halves")
        masked_conv.gated(x, weight, y.new_empty(2 * units), features, spec, (1, 1), y, features)
        masked_conv.gate_backward(y, features, y.new_empty(2 * units))
        if label:
            masked_conv.backward(features, x, weight, None, spec, (1, 1), "none", (True, True, False))

    for channels, kernel in ((96, (3, 3)), (3, (7, 7))):
        x, weight, y = images(64, channels, 32, 32), images(192, channels, *kernel), images(64, 192, 32, 32)
        spec = MaskSpec(192, channels, kernel, "B", 3, "blocks")
        masked_conv.forward(x, weight, y.new_empty(192), spec, (1, 1), "relu")
        masked_conv.backward(y, x, weight, y, spec, (1, 1), "relu", (channels > 3, channels > 3, True))

    gated(96, 64, 32)

    block = Geometry(True, (2, 2), (1, 1), (0, 0))
    z = conv_bn_act.statistics(images(128, 512, 8, 8), images(512, 256, 4, 4), block)[0]
    conv_bn_act.normalise(z, Norm(*torch.empty(4, 256)), Activation("relu", 0.0))
    conv_bn_act.gradient_sums(z, z, Norm(*torch.empty(4, 256)), Activation("relu", 0.0))

    for x in (images(16, 64, 64, 64), torch.empty(16, 64, 64, 64, dtype=dtype)):
        _, statistics = instance_norm.forward(x, *torch.empty(2, 64), "relu", 0.0, 1e-5)
        instance_norm.backward(x, x, *torch.empty(2, 64), statistics, "tanh", 0.0, True)

    likelihoods(dtype)

    narrow, launch._INDICES = launch._INDICES, 0
    launch._tilings = lambda *_args, **_options: [tuning.Tile(32, 32, 32, 4, 2)]
    label = "in small tiles, 64-bit indices: "
    gated(40, 2, 8)
    masked_conv.forward(
        images(2, 3, 8, 8), images(32, 3, 3, 3), None, MaskSpec(32, 3, (3, 3), "A", 1, "blocks"), (1, 1), "none"
    )
    z = conv_bn_act.statistics(images(2, 32, 8, 8), images(32, 16, 4, 4), block)[0]
    norm, means = Norm(*torch.empty(4, 16)), GradientMeans(*torch.empty(2, 16))
    conv_bn_act.backward_with_norm(
        z, images(2, 32, 8, 8), images(32, 16, 4, 4), z, norm, means, block, Activation("tanh", 0.0), (True, True)
    )

    label = "in small tiles, float32: "
    launch._INDICES = narrow
    dtype = torch.float32
    for torch.backends.cudnn.allow_tf32 in (True, False):
        conv_bn_act.statistics(images(2, 32, 8, 8), images(32, 16, 4, 4), block)


if __name__ == "__main__":
    main()
