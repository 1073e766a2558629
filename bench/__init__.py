"""Benchmarks of genkernels: every operation against its strongest alternatives and the machine's peak.

    masked_conv.py             one operation on the CPU or a GPU (--device cpu|cuda), timed in turn with its
    conv_bn_act.py             alternatives; where these are long they stand in <operation>_baselines.py
    instance_norm.py
    softmax_nll.py
    wavefront_lstm.py
    sampler.py
    sampler_styles.py          the sampler on models in the styles of published ones (published_priors.py)
    pixelcnn.py, dcgan.py      a whole training step of a model
    accelerate.py              models of plain torch layers, before and after genkernels.accelerate
    sizes.py, overhead.py      single layers at every size, and the cost of a call
    gan_modes.py               modes that GANs cover on a ring of Gaussians: not a matter of speed
    gpu.py                     everything that needs a GPU: build, tests, benchmarks
    core/                      what they have in common; core/report.py prints the tables of an earlier run
    results/<machine>/         <benchmark>.json, one file for each machine and benchmark

::

    python -m bench.masked_conv                    one benchmark
    pytest bench --benchmark-only                  the same callables under pytest-benchmark
    python -m bench.core.report bench/results/...  the table of an earlier run

All alternatives run with freed memory kept by the process, as in a training run that is set up well; otherwise the
page faults of whatever was freed before decide.
"""

from genkernels.allocator import keep_freed_memory

keep_freed_memory()
