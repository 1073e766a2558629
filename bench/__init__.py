"""Benchmarks of genkernels: every operation against its strongest alternatives and the machine's peak.

::

    python -m bench.bench_masked_conv         one operation, timed in turn with its alternatives
    python -m bench.bench_pixelcnn            a whole training step
    pytest bench --benchmark-only             the same callables under pytest-benchmark
    python -m bench.report bench/results/...  the table of an earlier run
"""
