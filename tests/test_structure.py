"""The shape of the code: no module imports itself by way of others, no function is too long or takes too much."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules_of(package: Path) -> dict[str, Path]:
    """The file of each module below a package's folder, by its dotted name; a package's is its ``__init__``.

    A stub stands for a native module.
    """
    found = {}
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name: str, file: Path, modules: dict[str, Path]) -> set[str]:
    """The modules among ``modules`` that one of them names in an import, wherever in it that stands.

    ``import package`` and ``from package import name`` mean the package's ``__init__``, unless the name is a module.
    """
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{source}.{alias.name}" for alias in node.names}
            found |= {each if each in modules else source for each in inside}
    return found & modules.keys()


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """The sets of modules each of which imports all others by way of them, and any that imports itself."""
    reached = {name: reachable(graph, name) for name in graph}
    told: set[str] = set()
    for name in graph:
        circle = sorted(other for other in reached[name] if name in reached[other])
        if circle and name not in told:
            told |= set(circle)
            yield circle


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def import_graph(package: Path) -> dict[str, set[str]]:
    modules = modules_of(package)
    return {name: imports_of(name, file, modules) for name, file in modules.items()}


def test_no_modules_import_each_other_in_a_circle():
    found = [
        " <-> ".join(circle) for package in ("genkernels", "bench") for circle in circles(import_graph(ROOT / package))
    ]
    assert not found, "\n".join(found)


def test_circles_are_found_wherever_the_imports_stand(tmp_path):
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    for file, text in {
        "__init__.py": "from .q import a",
        "q/__init__.py": "from .a import f",
        "q/a.py": "def f():\n    from . import b",
        "q/b.py": "if TYPE_CHECKING:\n    from .a import f",
        "q/c.py": "from . import f, a",  # f is in the __init__, which does not import c
        "d.py": "from .q.e import g",
        "q/e.py": "import p.d",
    }.items():
        (package / file).write_text(text)
    graph = import_graph(package)
    assert graph["p.q.c"] == {"p.q", "p.q.a"}
    assert sorted(circles(graph)) == [["p.d", "p.q.e"], ["p.q.a", "p.q.b"]]
