"""``genkernels.accelerate`` and ``genkernels.restore``: the walk over a model, and the order of the attempts."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..arguments import check_model
from ..ops.core.verbose import silent
from . import mask_recognition, own_forward, recurrent, sequential
from .report import Reason, Report
from .swap import Swapped, unswap

_ONE_AT_A_TIME = threading.RLock()  # trials seed PyTorch's generator, and set it back


def accelerate(model: nn.Module, *, example: Any = None) -> Report:
    """Makes an existing model faster, in place, and changes nothing else about it.

    Swapped are, each after a check on random inputs (training and evaluation, outputs, gradients, running statistics):

    * masked convolutions, however they are written: for :func:`genkernels.ops.masked_conv2d`, or, where the live taps
      are a rectangle (whole rows, as in the vertical stack of a Gated PixelCNN), for a convolution of these alone, at
      sizes where it is quicker; weight norm, spectral norm or a parametrization may compute the weight;
    * runs of ``ConvTranspose2d`` or ``Conv2d``, ``BatchNorm2d`` and ``ReLU``, ``LeakyReLU``, ``Tanh`` or ``Sigmoid``
      (norm or activation may be missing), in an ``nn.Sequential`` or in a forward that torch.fx can follow: for
      :func:`genkernels.ops.conv_transpose2d_bn_act` and :func:`genkernels.ops.conv2d_bn_act`, at sizes where these are
      quicker;
    * ``InstanceNorm2d`` and the activation after it, if any: for :func:`genkernels.ops.instance_norm_act`, with the
      convolution before it as above;
    * Row and Diagonal LSTM layers that loop in Python (:mod:`genkernels.acceleration.recurrent` says which): their
      state-to-state part a ``Conv1d``, or a ``Conv2d`` on single rows or columns, with a bias or without; states made
      by ``new_zeros`` or by ``torch.zeros``, not learned. A loop that makes float32 tensors whatever it is given runs
      itself again once the model is moved to another dtype.

    Modules keep their parameters, buffers, names, hooks and their class, of which they become a subclass; so
    checkpoints, optimisers, deepcopy, pickle, DistributedDataParallel and torch.compile work as before. Little is
    seen from outside. Masked taps get a gradient of exactly zero, also where the original writes zeros into its weight
    and leaves a gradient for them. A mask that changes later counts, but a compiled model keeps the one that was there
    when it was loaded or its operator last ran uncompiled, and on a GPU one written through ``.data`` is not noticed.
    Settings of a swapped layer (its stride, say) are not to be changed afterwards: call :func:`restore` first.

    Args:
        model: any module; swapped again without harm.
        example: an input of the model, a tensor or a tuple of them; it is run once, without gradients, to see what
            reaches modules with a forward of their own. Needed only where the report says so.

    Returns:
        What was swapped and what was left, with the reasons; print it for a table.

    Raises:
        TypeError: the model is no ``nn.Module``.
    """
    check_model(model)
    with _ONE_AT_A_TIME, silent(), torch.inference_mode(False), torch.enable_grad():  # gradients are compared
        return _accelerate(model, example)


def _accelerate(model: nn.Module, example: Any) -> Report:
    report = Report()
    reason = _why_nothing(model)
    if reason is not None:
        report.note_left("", type(model).__name__, reason)
        return report
    inputs = {} if example is None else _inputs_of(model, example)
    owners = Counter(id(p) for part in model.modules() for p in part._parameters.values())
    settled: set[int] = set()  # modules that need no further look
    for name, module in list(model.named_modules()):
        if id(module) in settled or isinstance(module, Swapped):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            settled.update(map(id, module.modules()))
            report.note_left(name, type(module).__name__, Reason("it is a TorchScript module"))
        elif isinstance(module, _DENSE):
            reason = Reason("a dense recurrence; the operators convolve along rows and diagonals")
            report.note_left(name, type(module).__name__, reason)
        elif parts := (
            recurrent.attempt(name, module, report) or mask_recognition.attempt(name, module, report, owners)
        ):
            settled.update(map(id, parts))
        elif type(module).forward is nn.Sequential.forward:
            sequential.attempt(name, module, report)
        elif next(module.children(), None) is not None and not isinstance(module, _CONTAINERS):
            own_forward.attempt(name, module, report, inputs.get(id(module)))
    return report


def restore(model: nn.Module) -> None:
    """Gives every module of a model its own forward pass back.

    Raises:
        TypeError: the model is no ``nn.Module``.
    """
    check_model(model)
    for module in model.modules():
        unswap(module)


def _why_nothing(model: nn.Module) -> Reason | None:
    for p in (*model.parameters(), *model.buffers()):
        if is_lazy(p):
            return Reason("it has lazy parameters: run it once first")
        if p.is_meta:
            return Reason("it lies on the meta device: nothing can be tried")
    return None


_DENSE = (nn.RNNBase, nn.RNNCellBase)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _inputs_of(model: nn.Module, example: Any) -> dict[int, tuple[Any, ...]]:
    """What each module is given first when a copy of the model runs on the example."""
    arguments = example if isinstance(example, tuple) else (example,)
    twin = copy.deepcopy(model)
    seen: dict[int, tuple[Any, ...]] = {}
    for own, copied in list(zip(model.modules(), twin.modules(), strict=True)):

        def note(_: nn.Module, args: tuple[Any, ...], own: nn.Module = own) -> None:
            seen.setdefault(id(own), args)

        copied.register_forward_pre_hook(note)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*arguments)
    return seen
