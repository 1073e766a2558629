"""Threads: a model that is accelerated in one while others run theirs, and many that call one accelerated model."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from helpers.public_styles import WritesItsWeight
from torch import nn

import genkernels
from genkernels.nn import ConvBnAct2d
from genkernels.ops.conv_bn_act.heuristics import always_kernel
from genkernels.ops.core import verbose


class OwnForward(nn.Module):
    """A block that torch.fx has to follow, with an attribute that steers it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.scale = nn.Conv2d(64, 64, 4, 2, 1), nn.BatchNorm2d(64), 2.0

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) * self.scale


def test_other_threads_run_their_models_while_accelerate_traces():
    bystander, x = nn.Sequential(OwnForward(), nn.Conv2d(64, 3, 1)).eval(), torch.randn(2, 64, 8, 8)
    expected, done = bystander(x), threading.Event()
    untouched = dict(vars(nn.Module))

    def look_on():
        count = 0
        while not done.is_set() or count < 3:
            assert bystander(x).equal(expected)
            count += 1
        return count

    models = [nn.ModuleDict({"a": OwnForward()}) for _ in range(4)]

    def accelerated(model):
        return [(entry.swapped, entry.detail) for entry in genkernels.accelerate(model).entries]

    with ThreadPoolExecutor(4) as pool:
        watching = [pool.submit(look_on) for _ in range(2)]
        reports = list(pool.map(accelerated, models))
        done.set()
        assert all(watcher.result() >= 3 for watcher in watching)
    assert [[swapped for swapped, _ in report] for report in reports] == [["conv_bn_act"]] * 4, reports
    assert dict(vars(nn.Module)) == untouched


def test_others_go_on_choosing_and_telling_while_one_thread_takes_the_kernel_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(verbose, "_ON", True)
    monkeypatch.setattr(verbose, "_said", set())
    layer, x = ConvBnAct2d(3, 4, 3).eval(), torch.randn(1, 3, 6, 6)
    with always_kernel(), verbose.silent(), ThreadPoolExecutor(1) as pool:
        layer(x)
        assert capsys.readouterr().err == ""
        pool.submit(layer, x).result()
    assert "PyTorch's own operators" in capsys.readouterr().err


def test_threads_get_from_an_accelerated_model_what_one_gets():
    torch.manual_seed(0)
    masked = WritesItsWeight("B", 16, 64, 3, padding=1)
    model = nn.Sequential(masked, nn.ReLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU()).eval()
    genkernels.accelerate(model)
    inputs = [torch.randn(2, 16, size, size) for size in (6, 8, 12, 16, 20, 24)]
    with torch.no_grad():
        expected = [copy.deepcopy(model)(x) for x in inputs]
        with ThreadPoolExecutor(6) as pool:
            for _ in range(5):
                for got, one in zip(pool.map(model, inputs), expected, strict=True):
                    torch.testing.assert_close(got, one)
