"""Imports among the modules of the sampler go in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from genkernels import sampling

FOLDER = Path(sampling.__file__).parent


def imported(path: Path) -> set[Path]:
    """The sampler's modules that one of them imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {base.with_suffix(".py"), *(base / f"{name.name}.py" for name in node.names)}
    return {file for file in found if file.exists() and FOLDER in file.parents}


def test_no_module_imports_one_that_imports_it():
    modules = {path: imported(path) for path in FOLDER.rglob("*.py") if path.name != "__init__.py"}
    assert sum(map(len, modules.values())) > 50
    TopologicalSorter(modules).prepare()  # raises CycleError with the modules of a circle
