"""Sampling pixel by pixel at the cost of one forward pass: a model is traced into a program, which executors run."""

from .compile import compile_program
from .executors import EXECUTORS, Executor, execute, teacher_forced
from .full_forward import full_forward_sample
from .graph import NotTraceable
from .program import Program
from .sample import sample
from .traced import Traced

__all__ = [
    "EXECUTORS",
    "Executor",
    "NotTraceable",
    "Program",
    "Traced",
    "compile_program",
    "execute",
    "full_forward_sample",
    "sample",
    "teacher_forced",
]
