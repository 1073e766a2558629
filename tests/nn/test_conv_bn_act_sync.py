"""Statistics over several processes: two of them compute what nn.BatchNorm2d computes on the joined batch."""

import sys
import textwrap

import pytest
import torch
from helpers.fresh_process import run_fresh

needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without torch.distributed or its gloo backend",
)

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d

def work(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    shares = [slice(0, 5), slice(5, 7)]  # of different sizes
    for cls, base in ((ConvTransposeBnAct2d, nn.ConvTranspose2d), (ConvBnAct2d, nn.Conv2d)):
        for dtype in (torch.float64, torch.float32):
            for layer_kind in ("sync", "converted", "group"):
                torch.manual_seed(0)
                group = dist.new_group([0, 1]) if layer_kind == "group" else layer_kind == "sync"
                layer = cls(3, 20, 4, 2, 1, activation="leaky_relu", sync=group, dtype=dtype)
                if layer_kind == "converted":
                    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
                plain = nn.Sequential(base(3, 20, 4, 2, 1, bias=False, dtype=dtype),
                                      nn.BatchNorm2d(20, dtype=dtype), nn.LeakyReLU())
                plain[0].weight.data.copy_(layer.weight.data)
                x, target = torch.randn(7, 3, 6, 6, dtype=dtype), None
                whole = x.clone().requires_grad_()
                expected = plain(whole)
                grad = torch.randn_like(expected)
                expected.backward(grad)
                own = x[shares[rank]].clone().requires_grad_()
                y = layer(own)
                y.backward(grad[shares[rank]])
                close = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else {}
                torch.testing.assert_close(y, expected[shares[rank]], **close)
                torch.testing.assert_close(own.grad, whole.grad[shares[rank]], **close)
                for parameter, other in zip(layer.parameters(), plain.parameters(), strict=True):
                    total = parameter.grad.clone()
                    dist.all_reduce(total)
                    torch.testing.assert_close(total, other.grad, **close)
                for buffer, other in zip(layer.buffers(), plain.buffers(), strict=True):
                    torch.testing.assert_close(buffer, other, **close)
                layer.eval(), plain.eval()
                torch.testing.assert_close(layer(x), plain(x), **close)
    for cls, base in ((ConvTransposeBnAct2d, nn.ConvTranspose2d), (ConvBnAct2d, nn.Conv2d)):
        for counts in ((0, 0), (1, 0), (0, 1), (1, 1)):
            few_values(cls, base, counts, rank)
    dist.destroy_process_group()

def error_of(call, *inputs):
    try:
        call(*inputs)
    except ValueError as error:
        return str(error)
    return None

def few_values(cls, base, counts, rank):
    # counts: how many images of one pixel each process has
    torch.manual_seed(0)
    layer = cls(3, 20, 1, bias=True, activation="relu", sync=True)
    layer.bn.running_mean.fill_(0.3), layer.bn.running_var.fill_(0.7)
    plain = nn.Sequential(base(3, 20, 1), nn.BatchNorm2d(20), nn.ReLU())
    for own, other in zip(layer.parameters(), plain.parameters(), strict=True):
        other.data.copy_(own.data)
    plain[1].load_state_dict(layer.bn.state_dict())
    images = torch.randn(sum(counts), 3, 1, 1)
    own = images.split(counts)[rank].clone().requires_grad_()
    if sum(counts) == 1:
        assert "xpected more than 1 value per channel" in error_of(plain, images)
        assert "expected more than one value per channel when training" in error_of(layer, own)
    else:
        y = layer(own)
        y.sum().backward()
        assert own.grad.isfinite().all()
        if sum(counts) > 0:
            torch.testing.assert_close(y, plain(images).split(counts)[rank])
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer.bn, name), getattr(plain[1], name))

work(int(sys.argv[1]), sys.argv[2])
print("done")
"""


@needs_gloo
def test_two_processes_compute_what_one_does_with_the_joined_batch():
    printed = run_fresh(
        f"""
        import socket, subprocess, sys
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        code = {textwrap.dedent(WORKER)!r}
        command = [{sys.executable!r}, "-c", code]
        workers = [subprocess.Popen([*command, rank, port], stdout=subprocess.PIPE, text=True) for rank in "01"]
        print([worker.communicate(timeout=100)[0].strip() for worker in workers])
        """
    )
    assert printed == "['done', 'done']"


def test_a_single_process_needs_no_exchange():
    from genkernels.nn import ConvBnAct2d

    layer = ConvBnAct2d(3, 4, 3, sync=True)
    other = ConvBnAct2d(3, 4, 3)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(x), other(x))  # small: without sync PyTorch's own operators run
