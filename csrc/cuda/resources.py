"""Compiles every CUDA source, warnings being errors, and holds what ptxas reports against resources.json.

    python csrc/cuda/resources.py            compile and compare
    python csrc/cuda/resources.py --update   compile and write the table anew

No kernel may spill registers, on any architecture. Register counts are compared where nvcc is the version that the
table was made with, since they are its own choice; another one is told, and its spills are counted all the same.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "resources.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")  # compiled where nvcc knows them
FLAGS = ["-std=c++17", "-O3", f"-I{FOLDER.parent}", "-Werror", "all-warnings", "-Xptxas", "-v"]

Kernels = dict[str, dict[str, int]]  # name -> registers, spilled bytes, bytes of static shared memory


def nvcc_version() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", text)
    assert found, text
    return found.group(1)


def known_architectures() -> list[str]:
    listing = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = {line.replace("compute", "sm") for line in listing.split()}
    return [name for name in ARCHITECTURES if name in known]


def report(source: Path, architecture: str) -> Kernels:
    """What ptxas says of the kernels of one source."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch={architecture}", "-c", str(source), "-o", f"{folder}/object.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name}, {architecture}:\n{done.stdout}{done.stderr}")
    kernels: Kernels = {}
    for part in (done.stdout + done.stderr).split("Compiling entry function '")[1:]:
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert spilled, part
        assert used, part
        kernels[readable(part.partition("'")[0])] = {
            "registers": int(used.group(1)),
            "spilled": int(spilled.group(1)) + int(spilled.group(2)),
            "static_shared": int(shared.group(1)) if shared else 0,
        }
    return kernels


def readable(symbol: str) -> str:
    """`kernel<Type>` for a mangled name."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("gk::cuda::", "")
    return re.sub(r"\(.*", "", name)


def measured(jobs: int) -> dict[str, Kernels]:
    pairs = [(source, arch) for arch in known_architectures() for source in sorted(FOLDER.rglob("*.cu"))]
    with ThreadPoolExecutor(jobs) as pool:
        reports = list(pool.map(lambda pair: report(*pair), pairs))
    result: dict[str, Kernels] = {}
    for (_, arch), kernels in zip(pairs, reports, strict=True):
        result.setdefault(arch, {}).update(kernels)
    return {arch: dict(sorted(kernels.items())) for arch, kernels in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: %(default)s)")
    options = parser.parse_args()
    for tool in ("nvcc", "c++filt"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} was not found")
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    version, found = nvcc_version(), measured(options.jobs)
    wrong = [
        f"{arch}: {name} spills {numbers['spilled']} bytes"
        for arch, kernels in found.items()
        for name, numbers in kernels.items()
        if numbers["spilled"]
    ]
    if options.update:
        table |= {"nvcc": version, "kernels": found}  # what else it holds is that of tests/ops/test_*_cuda.py
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    elif version == table["nvcc"]:
        wrong += [
            f"{arch}: resources.json has another account of {name}: {table['kernels'].get(arch, {}).get(name)}, "
            f"now {found.get(arch, {}).get(name)}"
            for arch in sorted(table["kernels"].keys() | found.keys())
            for name in sorted(table["kernels"].get(arch, {}).keys() | found.get(arch, {}).keys())
            if table["kernels"].get(arch, {}).get(name) != found.get(arch, {}).get(name)
        ]
    else:
        print(f"nvcc {version}, the table is of {table['nvcc']}: registers are not compared, spills are")
    if wrong:
        sys.exit("\n".join(wrong))
    for arch, kernels in found.items():
        most = max(numbers["registers"] for numbers in kernels.values())
        print(f"{arch}: {len(kernels)} kernels, no spills, at most {most} registers")


if __name__ == "__main__":
    main()
