"""A check that `torch.fx` can write a model's forward pass down as a list of known steps."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from genkernels.models import AutoregressiveModel


class _Predict(nn.Module):
    """``predict`` of a model with classes, as a module that can be traced."""

    def __init__(self, model: AutoregressiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        return self.model.predict(scaled, condition)


class _PredictWithoutClasses(_Predict):
    def forward(self, scaled: Tensor) -> Tensor:
        return self.model.predict(scaled, None)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding, nn.ReLU))


def trace(model: AutoregressiveModel) -> tuple[Callable[..., Tensor], set[str]]:
    """``predict`` as a graph whose leaves are convolutions, and the names of all other steps in it."""
    root = _PredictWithoutClasses(model) if model.num_classes is None else _Predict(model)
    graph = _Tracer().trace(root)
    steps = [node.target for node in graph.nodes if node.op in ("call_function", "call_method")]
    assert all(node.op != "get_attr" for node in graph.nodes)
    return fx.GraphModule(root, graph), {step if isinstance(step, str) else step.__name__ for step in steps}


# Steps that only shift, cut, join, combine or name what is there.
KNOWN_STEPS = {
    "contiguous", "pad", "chunk", "getitem", "unflatten", "transpose", "unsqueeze", "cat",
    "tanh", "sigmoid", "relu", "add", "mul",
}  # fmt: skip


def assert_traceable(model: AutoregressiveModel, condition: Tensor | None = None) -> None:
    """The graph holds known steps alone, and gives what the model gives, for another size and batch than any seen."""
    traced, steps = trace(model)
    assert steps <= KNOWN_STEPS
    height, width = model.image_size
    images = torch.rand(3 if condition is None else len(condition), model.in_channels, height, width)
    with torch.no_grad():
        arguments = (images,) if condition is None else (images, condition)
        assert torch.equal(traced(*arguments), model.predict(images, condition))
