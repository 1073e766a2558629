"""Executors of sampling programs.

registry.py        the executor for a program; batches in parts that fit into memory
run_arguments.py   Run: arguments of an executor besides the program
stops.py           a run that stops before every draw
pytorch.py         plain PyTorch: every dtype and device, the oracle
cpu.py, cuda.py    arguments and memory around the native executors
records.py         records of csrc/sampler_records.h
layout.py          where values lie in an image's memory
packing.py         from a program to its records
cpu_packing.py     weights as the CPU executor reads them
cuda_packing.py    weights as the CUDA executor reads them
"""
