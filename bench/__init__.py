"""Benchmarks of genkernels: every operation against its strongest alternatives and the machine's peak.

::

    python -m bench.masked_conv         one operation, timed in turn with its alternatives
    python -m bench.pixelcnn            a whole training step; bench.dcgan: one of two networks
    pytest bench --benchmark-only             the same callables under pytest-benchmark
    python -m bench.core.report bench/results/...  the table of an earlier run

All alternatives run with freed memory kept by the process, as in a training run that is set up well; otherwise the
page faults of whatever was freed before decide.
"""

from genkernels.allocator import keep_freed_memory

keep_freed_memory()
