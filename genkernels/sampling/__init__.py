"""Sampling pixel by pixel at the cost of one forward pass: a model is traced into a program, which executors run."""

from .compile import compile_program
from .executors.registry import EXECUTORS, Executor, execute, teacher_forced
from .full_forward import full_forward_sample
from .program.program import Program
from .sample import sample
from .sampler import FastSampler, Proof, fast_sampler
from .trace.graph import NotTraceable
from .trace.tensor import Traced

__all__ = [
    "EXECUTORS",
    "Executor",
    "FastSampler",
    "NotTraceable",
    "Program",
    "Proof",
    "Traced",
    "compile_program",
    "execute",
    "fast_sampler",
    "full_forward_sample",
    "sample",
    "teacher_forced",
]
