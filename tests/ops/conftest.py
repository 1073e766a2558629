"""Fixtures of the operations' tests."""

import pytest
import torch
from helpers.triton_device import INTERPRETED


@pytest.fixture
def one_small_tile(monkeypatch, request):
    """Small images make several tiles, and a GPU compiles each kernel for one tile size."""
    from genkernels.triton_conv import launch
    from genkernels.triton_conv.tuning import Tile

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if "every_tiling" not in request.fixturenames and not INTERPRETED:
        monkeypatch.setattr(launch, "_tilings", lambda *_args, **_options: [Tile(32, 32, 16, 4, 2)])
