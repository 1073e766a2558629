"""``torch.onnx.export`` of layers, models and accelerated models: the file computes what the module does."""

import numpy
import pytest
import torch
from helpers import public_styles as styles
from helpers.every_layer import layer_and_input, model_and_input
from torch.export import Dim

import genkernels
from genkernels import nn
from genkernels.ops.masked_conv import dispatch

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, which runs the file, is not installed")
pytest.importorskip("onnxscript", reason="onnxscript, which torch.onnx.export needs, is not installed")


def accelerated(model, *shape):
    assert genkernels.accelerate(model).swapped
    return model, torch.randn(3, *shape)


MODULES = {
    "masked": lambda: layer_and_input("masked"),
    "gated with colours and a condition": lambda: layer_and_input("gated B with a condition"),
    "down": lambda: layer_and_input("down"),
    "down without norm": lambda: layer_and_input("down without norm"),
    "up": lambda: layer_and_input("up"),
    "row": lambda: (nn.RowLSTM(2, 3, learned_state=True), torch.randn(3, 2, 2, 3)),
    "diagonal": lambda: (nn.DiagonalBiLSTM(2, 3), torch.randn(3, 2, 3, 2)),
    "pixelcnn": lambda: model_and_input("pixelcnn"),
    "gated pixelcnn": lambda: model_and_input("gated pixelcnn"),
    "generator": lambda: model_and_input("dcgan's generator"),
    "accelerated discriminator": lambda: accelerated(styles.discriminator(), 3, 16, 16),
    "accelerated pixelcnn": lambda: accelerated(styles.pixelcnn(), 1, 6, 7),
}


def assert_file_computes_it(exported, module, x, tmp_path, batches=(1, 3, 5)):
    path = tmp_path / "model.onnx"
    exported.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in batches:
        own = torch.cat([x, x])[:batch]
        with torch.no_grad():
            expected = module(own)
        got = session.run(None, {name: own.numpy()})[0]
        numpy.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def export(module, x):
    return torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_computes_what_the_module_does_at_every_batch(name, tmp_path, seeded):
    module, x = MODULES[name]()
    assert_file_computes_it(export(module.eval(), x), module, x, tmp_path)


def test_a_program_that_was_exported_before_becomes_a_file_too(tmp_path, seeded):
    module, x = layer_and_input("masked")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch")},))
    assert_file_computes_it(torch.onnx.export(program, dynamo=True, verbose=False), module, x, tmp_path)


def test_the_one_pass_gate_of_a_gpu_becomes_a_file_too(tmp_path, monkeypatch, seeded):
    module, x = layer_and_input("gated A")
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: True)
    exported = export(module.eval(), x)
    monkeypatch.undo()
    assert_file_computes_it(exported, module, x, tmp_path)


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
def test_batch_norm_in_training_becomes_a_file_too(tmp_path, seeded):
    module, x = layer_and_input("up")
    assert_file_computes_it(export(module, x), module, x, tmp_path, [3])


def test_the_operator_runs_again_after_an_export(seeded):
    module, x = layer_and_input("down")
    export(module.eval(), x)
    program = torch.export.export(module, (x,))
    assert [n for n in program.graph.nodes if n.target == torch.ops.genkernels.conv_act.default]
