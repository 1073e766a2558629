"""``genkernels.accelerate``: layers of an existing model swapped in place, each after a check on random inputs.

    accelerate.py         the public functions, the walk over a model's modules, and the order of the attempts
    report.py             what was swapped and what was left, with the reasons
    swap.py               the class of a module becomes a subclass with another forward, and back
    verify.py             a module as it was and as it would be, side by side on random inputs
    module_state.py       parts by path, a copy of a module, and whether a forward pass has changed anything in it
    computed_weight.py    weights that weight norm, spectral norm or a parametrization computes in each pass

    mask_candidates.py    modules that may be a masked convolution, and why others with a mask are not tried
    mask_recognition.py   the mask of such a module, found by its response to single lit pixels
    masked.py             a masked convolution as masked_conv2d, or as a dense convolution of its live taps
    recurrent.py          Row and Diagonal LSTM layers that loop in Python: found, and run as one operator
    blocks.py             runs of convolution, norm and activation, and how one runs
    sequential.py         runs in an nn.Sequential
    own_forward.py        runs in a forward of one's own, in the graph that tracing.py gives
    tracing.py            a forward as a graph of its children's calls, and the guards under which it holds

Each kind of swap has a function ``attempt``, which the walk calls: it recognises, checks, swaps and reports.
"""

from .accelerate import accelerate, restore
from .report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]
