"""The shape of the code: no circles of imports, no function too long or with too many parameters, a true map."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import genkernels.models
import genkernels.nn
import genkernels.ops

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_PARAMETERS = 80, 12

# --- imports --------------------------------------------------------------------------------------------------


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


# --- the map --------------------------------------------------------------------------------------------------


def test_every_package_lists_its_files_and_no_others():
    for init in (ROOT / "genkernels").rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        files = {file.name for file in init.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        assert {name for name in files if name not in text} == set(), init
        assert set(re.findall(r"^\s*(\w+\.py)\b", text, re.MULTILINE)) <= files, init


def test_the_architecture_page_names_files_that_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = {path for path in re.findall(r"`([\w/.]+/[\w.]*)`", text) if not path.endswith(("/x", "..."))}
    assert len(paths) > 30
    folders = [ROOT, ROOT / "genkernels", ROOT / "genkernels/sampling", ROOT / "csrc"]
    assert {path for path in paths if not any((folder / path).exists() for folder in folders)} == set()


# --- functions ------------------------------------------------------------------------------------------------


class Function(NamedTuple):
    place: str  # file:line
    name: str  # with its module and class, in Python
    lines: int
    parameters: list[str]


def python_functions(file: Path) -> Iterator[Function]:
    """Every function of a file, nested ones too; ``self`` and ``cls`` are no parameters."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    waiting: list[tuple[str, ast.AST]] = [(".".join(parts), ast.parse(file.read_text(encoding="utf-8")))]
    while waiting:
        scope, parent = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            name = f"{scope}.{node.name}" if named else scope
            waiting.append((name, node))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                taken = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                parameters = [each.arg for each in taken if each.arg not in ("self", "cls")]
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield Function(f"{file.relative_to(ROOT)}:{node.lineno}", name, lines, parameters)


def native_functions(file: Path) -> Iterator[Function]:
    """Every function of a C++ or CUDA file."""
    lizard = pytest.importorskip("lizard", reason="reading C++ needs the extra 'test'")
    code = re.sub(r"__attribute__\(\(.*?\)\)", "", file.read_text(encoding="utf-8"))  # which it takes for functions
    found = lizard.analyze_file.analyze_source_code(f"{file}.cpp", code).function_list
    for each in found:
        lines = each.end_line - each.start_line + 1
        yield Function(f"{file.relative_to(ROOT)}:{each.start_line}", each.name, lines, each.full_parameters)


def public_names() -> set[str]:
    """Functions that users call and whose parameters they choose among: they may have many.

    These are the functions in ``genkernels.ops.__all__``, the constructors of the classes in ``genkernels.nn.__all__``
    and ``genkernels.models.__all__``, and the commands of the command line.
    """
    chosen = [getattr(genkernels.ops, name) for name in genkernels.ops.__all__]
    for room in (genkernels.nn, genkernels.models):
        chosen += [getattr(room, name).__init__ for name in room.__all__ if inspect.isclass(getattr(room, name))]
    app = pytest.importorskip("genkernels.cli.app", reason="the command line needs typer").app
    chosen += [command.callback for command in app.registered_commands]
    functions = [inspect.unwrap(each) for each in chosen if inspect.isroutine(each)]
    return {f"{function.__module__}.{function.__qualname__}" for function in functions}


@lru_cache
def operator_arguments() -> list[list[str]]:
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("genkernels::")]
    return [[argument.name for argument in schema.arguments] for schema in schemas]


def mirrors_a_schema(parameters: list[str]) -> bool:
    """Whether a function is an implementation of a torch operator: its last parameters are the operator's arguments."""
    return any(parameters[-len(names) :] == names for names in operator_arguments())


@lru_cache
def all_python_functions() -> list[Function]:
    folders = (ROOT / name for name in ("genkernels", "bench", "csrc", "tests/helpers"))
    files = [ROOT / "setup.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]
    return [function for file in files for function in python_functions(file)]


@lru_cache
def all_native_functions() -> list[Function]:
    files = sorted(file for file in (ROOT / "csrc").rglob("*") if file.suffix in (".h", ".cpp", ".cu"))
    return [function for file in files for function in native_functions(file)]


def check_lines(functions: list[Function]) -> None:
    found = [f"{f.place}: {f.name} has {f.lines} lines" for f in functions if f.lines > MOST_LINES]
    assert not found, "\n".join(found)


def bundled(function: Function) -> Function:
    """Of a Triton kernel the arguments that Triton must not specialise count as one: they cannot cross in a tuple.

    genkernels/triton_conv/arguments.py says why.
    """
    module, _, name = function.name.rpartition(".")
    if not name.endswith("_kernel") or len(function.parameters) <= MOST_PARAMETERS:
        return function
    pytest.importorskip("triton", reason="looking at Triton's kernels needs Triton")
    apart = {each.name for each in getattr(importlib.import_module(module), name).params if each.do_not_specialize}
    kept = [each for each in function.parameters if each not in apart]
    return function._replace(parameters=[*kept, *(["sizes"] if apart else [])])


def check_parameters(functions: list[Function]) -> None:
    many = [f for f in functions if len(f.parameters) > MOST_PARAMETERS]
    assert not many, "\n".join(f"{f.place}: {f.name} has {len(f.parameters)} parameters" for f in many)


def test_no_python_function_is_too_long():
    check_lines(all_python_functions())


def test_no_python_function_takes_too_much_but_public_ones_and_operators():
    functions, public = all_python_functions(), public_names()
    assert operator_arguments()
    assert {name for name in public if name.startswith("genkernels.")} <= {function.name for function in functions}
    bound = [f for f in functions if f.name not in public and not mirrors_a_schema(f.parameters)]
    check_parameters([bundled(f) for f in bound])


def test_no_native_function_is_too_long():
    check_lines(all_native_functions())


def test_no_native_function_takes_too_much():
    check_parameters(all_native_functions())
