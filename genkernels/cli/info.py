"""``genkernels info``: versions, build and backends of this installation, and why one is not there."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import genkernels


def show_info(console: Console) -> None:
    info = genkernels.build_info()
    native = info["native"]
    rows = {
        "genkernels": info["version"],
        "python": info["python"],
        "torch": info["torch"],
        "platform": info["platform"],
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads, OMP_NUM_THREADS)",
    }
    if native is None:
        rows["native extension"] = f"missing: {info['native_error']}"
    else:
        cuda = native["cuda"]
        rows["native extension"] = f"built with {native['compiler']}, OpenMP {native['openmp']}"
        rows["instruction sets"] = ", ".join(native["isas"])
        rows["CUDA kernels"] = (
            f"built with CUDA {cuda['compiler']} for {cuda['architectures']}"
            if cuda["compiled"]
            else f"not built: {cuda['reason']}"
        )
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)

    backends = Table("backend", "", "", box=None, pad_edge=False, title_justify="left")
    for backend in genkernels.available_backends().values():
        available = Text("yes", style="green") if backend.available else Text("no", style="red")
        backends.add_row(backend.name, available, backend.reason)
    console.print()
    console.print(backends)
