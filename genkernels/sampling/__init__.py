"""Sampling pixel by pixel at the cost of one forward pass: a model is traced into a program, which executors run.

fast_sampler.py   the public function: what a model takes and gives is found out, and its sampler proven
sampler.py        FastSampler, the public class
verification.py   the proof of a sampler before its first use
output_layout.py  where a model's output has levels, colours, rows and columns
sample.py         sampling from a model by its program or, where it has none, by full forward passes
request.py        checked arguments of a call, for every sampler
predictor.py      what a model takes and gives, and models that say so themselves
compile.py        the program of a model, kept until a weight changes
steps.py          sampling with one's own hand at the draw
full_forward.py   one forward pass for each sub-pixel: the oracle
trace/            model -> graph
scheduling/       graph -> program
program/          the program: instructions and values
executors/        PyTorch, CPU and CUDA
"""

from .compile import compile_program
from .executors.registry import EXECUTORS, Executor, execute, teacher_forced
from .fast_sampler import fast_sampler
from .full_forward import full_forward_sample
from .program.program import Program
from .sample import sample
from .sampler import FastSampler, Verification, sampler_of
from .steps import Step, Steps
from .trace.graph import NotTraceable
from .trace.tensor import Traced

__all__ = [
    "EXECUTORS",
    "Executor",
    "FastSampler",
    "NotTraceable",
    "Program",
    "Step",
    "Steps",
    "Traced",
    "Verification",
    "compile_program",
    "execute",
    "fast_sampler",
    "full_forward_sample",
    "sample",
    "sampler_of",
    "teacher_forced",
]
