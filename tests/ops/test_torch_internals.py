"""The private names of torch: each means what is relied on, and no other file of the package uses one."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import genkernels
from genkernels.ops.core import torch_internals as internals


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad


# --- who watches a call ---------------------------------------------------------------------------------------------


def test_profiler_is_on():
    assert not internals.profiler_is_on()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert internals.profiler_is_on()
    assert not internals.profiler_is_on()


def test_dispatch_modes_and_the_class_of_one():
    assert not internals.dispatch_modes()
    seen = []

    class Mode(internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(internals.name_of(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        assert internals.dispatch_modes() == 1
        torch.ones(2).relu()
    assert seen == ["aten::ones", "aten::relu"]
    with FlopCounterMode(display=False):
        assert internals.dispatch_modes() == 1


def test_function_modes():
    class Mode(torch.overrides.TorchFunctionMode):
        pass

    assert not internals.function_modes()
    with Mode():
        assert internals.function_modes() == 1


def test_tracing_state():
    states = []

    def traced(x: Tensor) -> Tensor:
        states.append(internals.tracing_state())
        return 2 * x

    assert internals.tracing_state() is None
    torch.jit.trace(traced, torch.ones(2), check_trace=False)
    assert states[0] is not None


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_are_active_and_levels_of_each_kind(transform):
    found = []

    def look(x: Tensor) -> Tensor:
        found.append((internals.transforms_are_active(), internals.jvp_levels(), internals.vmap_is_active()))
        return (x * x).sum()

    x = torch.ones(3)
    look(x)
    if transform == "jvp":
        torch.func.jvp(lambda y: torch.func.jvp(look, (y,), (x,))[1], (x,), (x,))
    else:
        getattr(torch.func, transform)(look)(x)
    inside = (True, 2 if transform == "jvp" else 0, transform == "vmap")
    assert found == [(False, 0, False), inside]


def test_wrapped_tensors():
    x = torch.ones(3)

    def look(y: Tensor) -> Tensor:
        assert internals.is_wrapped(y)
        assert internals.unwrapped_once(y) is x and internals.unwrapped(y) is x
        return y.sum()

    torch.func.grad(look)(x)
    assert not internals.is_wrapped(x)


def test_a_wrapped_tensor_outlives_func_vjp():
    kept = []
    torch.func.vjp(lambda x: kept.append(x) or 2 * x, torch.ones(2))
    assert internals.is_wrapped(kept[0])
    assert not internals.transforms_are_active()


def test_is_batched_backward():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            seen.append(internals.is_batched_backward())
            return 2 * grad

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Look.apply(x), x, torch.ones(2))
    torch.autograd.grad(Look.apply(x), x, torch.ones(4, 2), is_grads_batched=True)
    assert seen == [False, True]


def test_forward_mode_is_on():
    assert not internals.forward_mode_is_on()
    with forward_ad.dual_level():
        assert internals.forward_mode_is_on()
    assert not internals.forward_mode_is_on()


def test_saved_tensors_hooks_are_seen_inside_of_checkpointing():
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(internals.saved_tensors_hooks())
        return 2 * x

    look(torch.ones(2))
    checkpoint.checkpoint(look, torch.ones(2, requires_grad=True), use_reentrant=False)
    assert seen[0] is None
    assert len(seen[1]) == 2


def test_global_module_hooks_exist():
    assert not internals.global_module_hooks_exist()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert internals.global_module_hooks_exist()
    finally:
        handle.remove()
    assert not internals.global_module_hooks_exist()


def test_module_call_code_is_that_of_a_frame_whose_self_is_the_module():
    found = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            frame = sys._getframe()
            while frame is not None and frame.f_code is not internals.module_call_code:
                frame = frame.f_back
            found.append(frame.f_locals["self"])
            return x

    module = Look()
    module(torch.ones(1))
    assert found == [module]


# --- the dispatcher and autograd ------------------------------------------------------------------------------------


def test_below_autograd_nothing_is_recorded():
    x = torch.ones(2, requires_grad=True)
    with internals.below_autograd():
        assert not (2 * x).requires_grad
    assert (2 * x).requires_grad


def test_a_redispatch_with_below_autograd_keys_and_excluded_keys_goes_past_both():
    library = torch.library.Library("genkernels_test_internals", "FRAGMENT")
    library.define("probe(Tensor x) -> Tensor")
    op = torch.ops.genkernels_test_internals.probe.default
    seen = []

    def recorded(keys, x: Tensor) -> Tensor:
        seen.append("autograd")
        return op.redispatch(keys & internals.below_autograd_keys, x)

    def cast(x: Tensor) -> Tensor:
        seen.append("autocast")
        with internals.excluding(internals.AUTOCAST_KEYS["cpu"]):
            return op(x)

    library.impl("probe", recorded, "Autograd", with_keyset=True)
    library.impl("probe", cast, internals.AUTOCAST_KEYS["cpu"].name)
    library.impl("probe", lambda x: seen.append("kernel") or x.clone(), "CPU")
    assert internals.name_of(op) == "genkernels_test_internals::probe"
    assert internals.tensor_count(op) == 1
    assert internals.tensor_count(torch.ops.aten.convolution.default) == 3
    with torch.autocast("cpu"):
        op(torch.ones(2, requires_grad=True))
    assert seen == ["autocast", "autograd", "kernel"]
    assert internals.AUTOCAST_KEYS["cuda"].name == "AutocastCUDA"
    assert isinstance(internals.AUTOCAST_KEYS["cuda"], internals.DispatchKey)


def test_any_requires_grad():
    x = torch.ones(2)
    assert not internals.any_requires_grad(x, None, "text", [1, 2], 0.5)
    assert internals.any_requires_grad(None, "text", x, x.clone().requires_grad_())


def test_apply_of_records_as_apply_does():
    x = torch.ones(2, requires_grad=True)
    y = internals.apply_of(Double)(x)
    assert y.grad_fn.name().startswith("Double")
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [2, 2]


# --- tensors --------------------------------------------------------------------------------------------------------


def test_a_wrapper_tensor_has_a_shape_and_meets_operators_alone():
    seen = []

    class Wrapper(Tensor):
        __torch_function__ = internals.no_torch_function

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append(internals.name_of(func))
            return torch.zeros(3)

    x = internals.new_wrapper_tensor(Wrapper, (2, 5), strides=(5, 1), dtype=torch.float64, device="cpu")
    assert (type(x), x.shape, x.dtype) == (Wrapper, (2, 5), torch.float64)
    assert type(torch.relu(x)) is Tensor
    assert seen == ["aten::relu"]


def test_add_each():
    sums = [torch.ones(2), torch.ones(3)]
    internals.add_each(sums, [torch.ones(2), 2 * torch.ones(3)])
    assert [t.tolist() for t in sums] == [[2, 2], [3, 3, 3]]


def test_trees():
    tree = {"a": (1, [2, 3]), "b": None}
    assert internals.tree_flatten(tree)[0] == [1, 2, 3, None]
    assert internals.tree_map(lambda leaf: leaf and 2 * leaf, tree) == {"a": (2, [4, 6]), "b": None}


def test_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        assert internals.process_group(group.group_name) is group
    finally:
        torch.distributed.destroy_process_group()


# --- no private names elsewhere -------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def path_of(node: ast.AST) -> list[str]:
    """["torch", "autograd", "grad"] of that expression; [] where it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def private_names(source: str) -> Iterator[str]:
    """Those of torch: attributes with an underscore, of torch or of what is imported from it, and such imports."""
    tree = ast.parse(source)
    of_torch = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for path, name in imported:
            if path.split(".")[0] == "torch":
                of_torch.add(name)
                if any(map(is_private, path.split("."))):
                    yield path
    for node in ast.walk(tree):
        path = path_of(node)
        if path and path[0] in of_torch and any(map(is_private, path)):
            yield ".".join(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super" and node.args:
            base = path_of(node.args[0])
            if base and base[0] in of_torch:
                yield ast.unparse(node)


FILES = sorted(Path(genkernels.__file__).parent.rglob("*.py"))


def test_no_other_file_uses_a_private_name_of_torch():
    own = Path(internals.__file__)
    found = {file.name: names for file in FILES if file != own and (names := set(private_names(file.read_text())))}
    assert not found


def test_private_names_are_found():
    source = "import torch\nfrom torch import nn\nfrom torch.utils import _pytree as tree\n"
    source += "torch._C.f()\nnn.Module._call_impl\nsuper(torch.autograd.Function, F).apply\ntorch.add(tree, self._a)\n"
    assert set(private_names(source)) == {
        "torch.utils._pytree", "torch._C", "torch._C.f", "nn.Module._call_impl", "super(torch.autograd.Function, F)",
    }  # fmt: skip


def test_every_name_is_tested_here():
    public = {name for name in vars(internals) if not name.startswith("_")}
    paths = map(path_of, ast.walk(ast.parse(Path(__file__).read_text())))
    used = {path[1] for path in paths if path[:1] == ["internals"] and len(path) > 1}
    assert public - {"Any", "Tensor", "annotations", "nn", "torch"} == used - {"__file__"}
