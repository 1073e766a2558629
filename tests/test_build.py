"""The package builds without torch, for old and new processors, and refuses bad settings in one sentence."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.fresh_process import run_fresh

from genkernels import _C

ROOT = Path(__file__).resolve().parent.parent


def load_setup():
    """setup.py as a module: its functions, without a build."""
    spec = importlib.util.spec_from_file_location("genkernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


# ---- one build from nothing ----


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built in a copy of the sources, while any `import torch` fails."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "genkernels"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    no_torch = tmp_path_factory.mktemp("no_torch")
    (no_torch / "torch.py").write_text("raise ImportError('the build must not import torch')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENKERNELS_")}
    environment["GENKERNELS_CUDA"] = "0"  # for time; the installation that is under test has it where nvcc is
    # The hook that pip calls; `pip install --no-build-isolation` comes to the same.
    result = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"],
        cwd=source,
        env=environment | {"PYTHONPATH": str(no_torch)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-8000:]
    (wheel,) = (source / "dist").glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (objects,) = (source / "build").glob("cmake-*")
    return SimpleNamespace(site=site, objects=objects, log=result.stdout)


def symbols(path, *options):
    """The names that `nm` lists, as the linker sees them."""
    command = ["nm", "--defined-only", *options, path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listing.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_wheel_holds_module_stub_typing_marker_and_licence(built):
    files = {str(path.relative_to(built.site)) for path in built.site.rglob("*") if path.is_file()}
    assert {"genkernels/_C.pyi", "genkernels/py.typed"} <= files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not any(name.startswith(("csrc", "tests", "build")) for name in files)


@pytest.mark.slow
def test_the_wheel_works_where_it_is_unpacked(built):
    printed = run_fresh(
        f"""
        import sys
        # Before the finder of an editable installation, which would offer the checkout instead.
        sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", str(f))]
        sys.path.insert(0, {str(built.site)!r})
        import genkernels
        from genkernels import _C
        print(genkernels.__file__)
        print(genkernels.available_backends()["cpu"].available, _C.fma_peak_gflops(1, 0.01) > 0)
        """
    )
    assert printed.splitlines() == [str(built.site / "genkernels" / "__init__.py"), "True True"]


def test_the_module_links_neither_torch_nor_python_nor_a_cuda_library():
    command = ["readelf", "-d", _C.__file__]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    system = r"(libgomp|libomp|libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux.*)\.so.*"
    assert [name for name in needed if not re.fullmatch(system, name)] == []
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_the_module_exports_no_symbol_of_the_cuda_runtime():
    names = symbols(_C.__file__, "--dynamic")
    assert "PyInit__C" in names
    assert [name for name in names if name.startswith(("cuda", "__cuda", "cu"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in _C.compiled_isas() if isa != "baseline"])
def test_no_code_for_new_processors_can_be_linked_in_for_old_ones(built, isa):
    """Every symbol that leaves an object of this instruction set belongs to its own namespace.

    An inline function of the C++ library, say, would have the same name in all of them, and the linker keeps
    whichever copy comes first: an illegal instruction on an older processor.
    """
    objects = sorted((built.objects / "CMakeFiles" / f"gk_cpu_{isa}.dir").rglob("*.o"))
    sources = {path.name for path in (ROOT / "csrc/cpu").rglob("*.cpp")} - {"isa.cpp", "selection.cpp"}
    assert {path.name.removesuffix(".o") for path in objects} == sources
    own = re.compile(rf"_Z(T[VTIS]|GVZ?|Z)?NK?2gk{len(isa)}{isa}")  # mangled: no return type in front
    for path in objects:
        assert [name for name in symbols(path, "--extern-only") if not own.match(name)] == [], path.name


@pytest.mark.slow
def test_nothing_is_compiled_for_the_building_machine_alone_or_with_unsafe_mathematics(built):
    entries = json.loads((built.objects / "compile_commands.json").read_text())
    seen = set()
    for entry in entries:
        flags = entry["command"].split()
        assert not [flag for flag in flags if flag.startswith(("-march", "-mcpu", "-ffast-math", "-Ofast"))]
        level = next((flag for flag in flags if flag.startswith("-DGK_ISA=")), "")
        wide = {flag for flag in flags if flag.startswith(("-mavx", "-mfma", "-mf16c", "-mbmi"))}
        assert bool(wide) == level.endswith(("avx2", "avx512")), entry["file"]
        assert any("512" in flag for flag in wide) == level.endswith("avx512"), entry["file"]
        seen.add(level.removeprefix("-DGK_ISA="))
    assert seen == {"", *_C.compiled_isas()}


# ---- what is installed ----


def arguments_in_stub(body: list[ast.stmt]) -> dict[str, list[str]]:
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {function.name: [argument.arg for argument in function.args.args] for function in functions}


def arguments_offered(function) -> list[str]:
    # pybind11 begins with a line such as "name(self: Class, threads: int, seconds: float) -> float"
    return re.findall(r"(\w+): ", function.__doc__.splitlines()[0].partition("->")[0])


def test_the_stub_names_what_the_module_offers():
    stub = ast.parse((ROOT / "genkernels" / "_C.pyi").read_text()).body
    named = arguments_in_stub(stub)
    if not _C.build_info()["cuda"]["compiled"]:
        named = {name: arguments for name, arguments in named.items() if not name.startswith("cuda_")}
    classes = {
        node.name: arguments_in_stub(node.body)
        for node in stub
        if isinstance(node, ast.ClassDef) and not any(ast.unparse(base) == "TypedDict" for base in node.bases)
    }
    if not _C.build_info()["cuda"]["compiled"]:
        classes = {name: methods for name, methods in classes.items() if not name.startswith("Cuda")}
    assert set(named) | set(classes) == {name for name in dir(_C) if not name.startswith("__")}
    for name, arguments in named.items():
        assert arguments_offered(getattr(_C, name)) == arguments, name
    for name, methods in classes.items():
        offered = {method for method in vars(getattr(_C, name)) if not method.startswith("_")} | {"__init__"}
        assert set(methods) == offered, name
        for method, arguments in methods.items():
            assert arguments_offered(getattr(getattr(_C, name), method)) == arguments, (name, method)


# ---- settings ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0", "80-real 90-real 90-virtual"),
        ("80 90", "80-real 90-real 90-virtual"),
        ("9.0, 8.0", "80-real 90-real 90-virtual"),
        ("8.0+PTX 9.0", "80-real 90-real 80-virtual"),
        ("9.0+ptx", "90-real 90-virtual"),
        ("9.0a", "90a-real"),
        ("8.0;9.0a", "80-real 90a-real 80-virtual"),
        ("90a+PTX", "90a-real 90a-virtual"),
        ("10.0f 120", "100f-real 120-real 120-virtual"),
        ("8.0 80", "80-real 80-virtual"),
    ],
)
def test_architectures_are_read_in_both_spellings_and_the_newest_gets_ptx(text, expected):
    assert setup.cuda_archs({"GENKERNELS_CUDA_ARCHS": text}) == expected.split()


def test_torch_cuda_arch_list_is_the_fallback_and_own_variable_wins():
    assert setup.cuda_archs({"TORCH_CUDA_ARCH_LIST": "8.6"}) == ["86-real", "86-virtual"]
    both = {"TORCH_CUDA_ARCH_LIST": "8.6", "GENKERNELS_CUDA_ARCHS": "9.0"}
    assert setup.cuda_archs(both) == ["90-real", "90-virtual"]
    empty = {"TORCH_CUDA_ARCH_LIST": "8.6", "GENKERNELS_CUDA_ARCHS": " "}
    assert setup.cuda_archs(empty) == ["86-real", "86-virtual"]


@pytest.mark.parametrize("variable", ["GENKERNELS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"])
@pytest.mark.parametrize("text", ["banana", "8", "8.0;sm_90", "9.0b", "9.0+PTXX", ";"])
def test_nonsense_architectures_are_refused_by_variable_expectation_and_value(variable, text):
    with pytest.raises(setup.BuildError) as refused:
        setup.cuda_archs({variable: text})
    message = str(refused.value)
    assert variable in message
    assert "expected entries such as 8.0, 80, 9.0a or 9.0+PTX" in message
    assert repr(text) in message
    assert "\n" not in message


def test_an_architecture_that_the_compiler_lacks_is_refused_with_those_it_has():
    with pytest.raises(setup.BuildError, match=r"GENKERNELS_CUDA_ARCHS: .*\(8\.0, 9\.0\), got '3\.5'"):
        setup.cuda_archs({"GENKERNELS_CUDA_ARCHS": "3.5"}, {80, 90})


def test_the_default_architectures_suit_the_compiler_at_hand():
    nvcc = setup.find_nvcc(dict(os.environ))
    supported = setup.nvcc_archs(nvcc) if nvcc else None
    assert setup.cuda_archs({}, supported) == ["80-real", "90-real", "90-virtual"]


@pytest.mark.parametrize(
    ("wanted", "nvcc", "with_cuda", "reason"),
    [
        (None, "/bin/nvcc", True, ""),
        ("auto", "/bin/nvcc", True, ""),
        ("1", "/bin/nvcc", True, ""),
        ("0", "/bin/nvcc", False, "GENKERNELS_CUDA=0"),
        ("0", None, False, "GENKERNELS_CUDA=0"),
        (None, None, False, "no nvcc was found"),
        ("", None, False, "no nvcc was found"),
    ],
)
def test_cuda_is_built_when_a_compiler_is_there_or_as_the_variable_says(wanted, nvcc, with_cuda, reason):
    choice, why = setup.cuda_choice({} if wanted is None else {"GENKERNELS_CUDA": wanted}, nvcc)
    assert choice is with_cuda
    assert reason in why
    assert bool(why) is not with_cuda


def test_a_wrong_cuda_choice_is_refused():
    with pytest.raises(setup.BuildError, match="GENKERNELS_CUDA: expected 0, 1 or auto, got 'yes'"):
        setup.cuda_choice({"GENKERNELS_CUDA": "yes"}, "/bin/nvcc")


def refused_build(before: str = "", **environment: str) -> str:
    """The one line on stderr with which a build ends that runs ``before`` first; nothing is compiled."""
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("genkernels_setup", {str(ROOT / "setup.py")!r})
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)
{before}
from setuptools import Distribution
command = setup.CMakeBuild(Distribution({{"name": "genkernels"}}))
command.build_extension(setup.Extension("genkernels._C", sources=[]))
"""
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    return sentence


def test_cuda_demanded_without_a_compiler_ends_the_build_with_one_sentence():
    sentence = refused_build("setup.find_nvcc = lambda environ: None", GENKERNELS_CUDA="1")
    assert sentence.startswith("genkernels: GENKERNELS_CUDA=1 asks for the CUDA kernels, but no nvcc was")


def test_a_missing_cpp_compiler_ends_the_build_with_one_sentence():
    sentence = refused_build(CXX="/nonexistent", GENKERNELS_CUDA="0")
    assert sentence.startswith("genkernels: no C++ compiler was found (/nonexistent); install one, g++ or clang++")
    assert "CXX" in sentence


def test_a_cpp_compiler_is_sought_in_path_and_tried(tmp_path):
    path = {"PATH": str(tmp_path)}
    with pytest.raises(setup.BuildError, match=r"no C\+\+ compiler was found \(c\+\+, g\+\+, clang\+\+\); install"):
        setup.check_cxx(path)
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 0\n")
    compiler.chmod(0o755)
    setup.check_cxx(path)
    setup.check_cxx(path | {"CXX": "g++ -m64"})
    compiler.write_text("#!/bin/sh\nexit 1\n")
    for environment in (path, {"CXX": str(compiler)}):
        with pytest.raises(setup.BuildError, match=r"the C\+\+ compiler \S*g\+\+ does not compile .* CXX name it"):
            setup.check_cxx(environment)


def test_nvcc_is_sought_in_the_variables_before_the_search_path(tmp_path):
    for name in ("home", "path"):
        compiler = tmp_path / name / "bin" / "nvcc"
        compiler.parent.mkdir(parents=True)
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)
    in_home, in_path = str(tmp_path / "home/bin/nvcc"), str(tmp_path / "path/bin/nvcc")
    path = {"PATH": str(tmp_path / "path/bin")}
    home = {"CUDA_HOME": str(tmp_path / "home")}
    assert setup.find_nvcc(path) == in_path
    assert setup.find_nvcc(path | home) == in_home
    assert setup.find_nvcc(home | {"CUDACXX": in_path}) == in_path
    assert setup.find_nvcc(home | path | {"CUDACXX": str(tmp_path / "elsewhere/nvcc")}) is None


def test_an_nvcc_that_does_not_run_is_named(tmp_path):
    with pytest.raises(setup.BuildError, match=r"nvcc was found but does not run .*GENKERNELS_CUDA=0"):
        setup.nvcc_archs(str(tmp_path / "nvcc"))


@pytest.mark.parametrize(
    ("wanted", "cores", "gibibytes", "jobs"),
    [
        (None, 8, 64, 8),
        (None, 8, 4, 2),  # 1.5 GiB each
        (None, 8, 0.5, 1),
        (None, 8, None, 8),
        ("3", 8, 1, 3),
        (" ", 8, 64, 8),
    ],
)
def test_parallel_jobs_are_bounded_by_cores_memory_and_max_jobs(wanted, cores, gibibytes, jobs):
    memory = None if gibibytes is None else int(gibibytes * 2**30)
    assert setup.parallel_jobs({} if wanted is None else {"MAX_JOBS": wanted}, cores, memory) == jobs


@pytest.mark.parametrize("wanted", ["0", "-1", "many", "1.5"])
def test_a_wrong_max_jobs_is_refused(wanted):
    message = f"MAX_JOBS: expected a whole number of at least 1, got '{wanted}'"
    with pytest.raises(setup.BuildError, match=message):
        setup.parallel_jobs({"MAX_JOBS": wanted}, 8, None)
