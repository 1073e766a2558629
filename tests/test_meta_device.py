"""Layers and models built on the meta device, as for FSDP: filled from a checkpoint, or with new random weights."""

import pytest
import torch
from helpers.every_layer import LAYERS, MODELS, SIZES, layer_and_input, model_and_input

from genkernels import models
from genkernels.ops.masked_conv.mask import mask_tensor

CHANNELS = SIZES["small"][0]
WHOLE = {
    "pixelcnn": lambda: models.PixelCNN(3, 24, 2, 4, residual=True, head_channels=24),
    "gated": lambda: models.GatedPixelCNN(1, 24, 2, 4, num_classes=3),
    "pixelrnn": lambda: models.PixelRNN(1, 12, 2, 2),
    "row pixelrnn": lambda: models.PixelRNN(1, 12, 2, 2, recurrence="row"),
    "audio": lambda: models.CausalAudioNet(4, 24, 3, 2, num_classes=3),
    "autoencoder": lambda: models.Autoencoder(1, 16, 16, image_size=8),
    "vae": lambda: models.VAE(1, 16, 16, 256, likelihood="gaussian", image_size=8),
    "dcgan": lambda: models.DCGAN(3, 16, 16, image_size=8),
}
BUILDS = {
    **{f"layer: {name}": (lambda name=name: LAYERS[name](CHANNELS), layer_and_input) for name in LAYERS},
    **{f"model: {name}": (MODELS[name][0], model_and_input) for name in MODELS},
}


@pytest.mark.parametrize("name", BUILDS)
def test_one_filled_from_a_checkpoint_is_the_one_that_wrote_it(name):
    build, with_input = BUILDS[name]
    module, x = with_input(name.split(": ")[1])
    mask_tensor.cache_clear()  # a mask that is kept must not come from the meta device
    with torch.device("meta"):
        empty = build()
    assert all(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert filled.eval()(x).equal(module.eval()(x))


def fill(module):
    """Something that no initialisation gives."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.fill_(7)


@pytest.mark.parametrize("name", LAYERS)
def test_new_weights_of_a_layer_leave_nothing_of_the_old(name):
    layer, _ = layer_and_input(name)
    layer = next(part for part in layer.modules() if type(part).__module__.startswith("genkernels"))
    fill(layer)
    layer.reset_parameters()
    assert not any((value == 7).any() for value in layer.state_dict().values())


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_built_on_meta_gets_the_random_weights_of_a_new_one(name):
    torch.manual_seed(0)
    new = WHOLE[name]()
    with torch.device("meta"):
        empty = WHOLE[name]()
    made = empty.to_empty(device="cpu")
    fill(made)
    made.reset_parameters()
    for (key, value), expected in zip(made.state_dict().items(), new.state_dict().values(), strict=True):
        assert value.stride() == expected.stride(), key
        assert not (value == 7).any(), key
        if torch.isin(expected, torch.tensor([-1.0, 0.0, 1.0])).all():
            assert value.equal(expected), key
        elif expected.numel() >= 16:
            spread = expected.std()
            assert (value.mean() - expected.mean()).abs() < 5 * spread / expected.numel() ** 0.5, key
            assert 0.5 < value.std() / spread < 2, key
