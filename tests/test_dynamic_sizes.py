"""Exported and compiled programs serve sizes that nobody knew of: each layer is one operator, whatever its size.

Eagerly an accelerated block takes PyTorch's operators where it is small. Were a program to choose, it would hold to the
sizes of one side of that choice; the batches here lie on both.
"""

import copy

import pytest
import torch
from helpers import public_styles as styles
from helpers.every_layer import LAYERS, MODELS, layer_and_input, model_and_input
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import genkernels

ACCELERATED = {
    **{f"masked, {name}": (make, (6 if name in ("blocks", "interleaved") else 4, 6, 7)) for name, make in
       styles.MASKED.items()},
    "pixelcnn": (styles.pixelcnn, (1, 6, 7)),
    "generator": (lambda: styles.generator(width=16), (8, 1, 1)),
    "discriminator": (lambda: styles.discriminator(width=32), (3, 16, 16)),
    "own forward": (lambda: styles.AttributeGenerator(width=32), (8,)),
    **{name: (make, (3, 5, 6)) for name, make in styles.LOOPS.items()},
}  # fmt: skip
BATCHES = (1, 3, 40)


def accelerated(name):
    """A swapped model and an input."""
    torch.manual_seed(0)
    make, shape = ACCELERATED[name]
    model, x = make(), torch.randn(4, *shape)
    assert genkernels.accelerate(model, example=x).swapped
    return model, x


def of_batch(x, batch):
    return torch.cat([x] * (batch // len(x) + 1))[:batch].roll(1, -1)


def assert_serves(program_of, model, sizes):
    """The program, made anew for each size as its buffers change, gives what the model gives."""
    for x in sizes:
        with torch.no_grad():
            torch.testing.assert_close(program_of()(x), copy.deepcopy(model)(x), rtol=1e-4, atol=1e-4)


def operators(program):
    return [node.target for node in program.graph.nodes if "genkernels" in str(node.target)]


EVERY = {
    **{f"layer: {name}": (lambda name=name: layer_and_input(name, "large")) for name in LAYERS},
    **{f"model: {name}": (lambda name=name: model_and_input(name)) for name in MODELS},
    **{f"accelerated: {name}": (lambda name=name: accelerated(name)) for name in ACCELERATED},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_a_program_exported_once_serves_every_batch(name, training, one_thread):
    model, x = EVERY[name]()
    model.train(training)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},))
    assert operators(program)
    assert_serves(program.module, model, [of_batch(x, batch) for batch in BATCHES])


@pytest.mark.parametrize("name", [name for name in EVERY if "layer" in name or "masked" in name] + ["accelerated: row"])
def test_a_program_exported_once_serves_every_height_and_width(name, one_thread):
    model, x = EVERY[name]()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO},))
    assert operators(program)
    wide = torch.cat([x, x], 3)
    assert_serves(program.module, model, [x, wide, wide[:2, :, 1:], torch.cat([wide, wide], 2)])


def assert_compiled_once(name, backend, compare):
    """Larger batches than the first are no reason to compile again.

    All of them are beyond 15: there PyTorch's own convolution, which is part of some models, has a guard.
    """
    model, x = EVERY[name]()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model.eval(), fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch in (17, 24, 40):
        compare(compiled, model, of_batch(x, batch))
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def same_output(compiled, model, x):
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def same_gradients(compiled, model, x):
    torch.testing.assert_close(
        *(torch.autograd.grad(f(x).square().mean(), model.parameters()) for f in (compiled, model)),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in EVERY if "model" not in name] + ["model: gated pixelcnn"])
def test_a_program_with_dynamic_sizes_is_compiled_once(name, fresh_compiler, one_thread):
    assert_compiled_once(name, "eager", same_output)


@pytest.mark.parametrize(
    "name", ["layer: masked", "layer: row", "layer: up", "accelerated: discriminator", "accelerated: row"]
)
def test_a_training_program_with_dynamic_sizes_is_compiled_once(name, fresh_compiler, one_thread):
    assert_compiled_once(name, "aot_eager", same_gradients)


@pytest.mark.slow
def test_a_package_compiled_ahead_of_time_serves_every_batch(tmp_path, one_thread):
    model, x = accelerated("discriminator")
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: Dim("batch")},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    assert_serves(lambda: loaded, model, [of_batch(x, batch) for batch in BATCHES])
