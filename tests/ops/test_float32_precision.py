"""float32 products on a GPU: every kernel takes them as PyTorch's own convolutions do, whichever way that was set."""

import ast

import pytest
import torch
from helpers.fresh_process import run_fresh

from genkernels.ops.core import cuda_device
from genkernels.ops.wavefront_lstm import gpu

OLD = {
    "pass": "tf32",
    "backends.cudnn.allow_tf32 = True": "tf32",
    "backends.cudnn.allow_tf32 = False": "ieee",
    "torch.set_float32_matmul_precision('highest')": "tf32",
    "backends.cuda.matmul.allow_tf32 = False": "tf32",
}
NEW = {
    "backends.cudnn.conv.fp32_precision = 'ieee'": "ieee",
    "backends.cudnn.conv.fp32_precision = 'tf32'": "tf32",
    "backends.cudnn.conv.fp32_precision = 'none'": "ieee",
    "backends.fp32_precision = 'tf32'; backends.cudnn.conv.fp32_precision = 'none'": "tf32",
    "backends.fp32_precision = 'ieee'; backends.cudnn.conv.fp32_precision = 'none'": "ieee",
    "backends.cudnn.fp32_precision = 'ieee'; backends.cudnn.conv.fp32_precision = 'none'": "ieee",
    "backends.cudnn.fp32_precision = 'tf32'; backends.cudnn.conv.fp32_precision = 'none'": "tf32",
    "backends.cuda.matmul.fp32_precision = 'ieee'": "tf32",
}
SETTINGS = OLD | (NEW if hasattr(torch.backends.cudnn, "conv") else {})


def test_it_is_what_pytorch_is_told_about_convolutions():
    printed = run_fresh(
        f"""
        import os, torch
        from torch import backends
        from genkernels.ops.core.cuda_device import float32_precision
        for setting in {list(SETTINGS)!r}:
            child = os.fork()  # a process for each: they cannot all be set back
            if child == 0:
                exec(setting)
                print(repr((setting, float32_precision())), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        """
    )
    assert dict(ast.literal_eval(line) for line in printed.splitlines()) == SETTINGS


def test_recurrences_and_tiled_convolutions_ask_the_same_function():
    pytest.importorskip("triton")
    from genkernels.triton_conv import forward, weight_gradient

    functions = {module.float32_precision for module in (gpu, forward, weight_gradient, cuda_device)}
    assert len(functions) == 1
