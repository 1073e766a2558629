"""Timing, ceilings, reports and checks that the benchmarks share.

    session.py       one run of a benchmark: device, budget, alternatives left out; its command line
    report.py        rows, claims and reports, as JSON and as tables; ``python -m bench.core.report``
    roofline.py      work and ceilings: how fast a machine could be at most
    gpu_timing.py    CUDA graphs in turn, and launches that queue up
    checks.py        results compared before anything is timed
    alternatives.py  names and memory layouts
    calls.py         forward passes and steps as they are timed
    machine.py       the machine and the software behind a result

Timing on a CPU is :mod:`genkernels.timing`, which the command line's demo uses too.
"""
