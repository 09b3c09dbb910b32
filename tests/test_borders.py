"""The borders of DESIGN.md: who may import whom, no torch at run time, what is public, and what the wheel holds."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import camp_sdk

ROOT = Path(__file__).parents[1]
FOLDERS = {"camp_sdk": "camp_sdk", "runtime": "camp_sdk.runtime", "export": "camp_sdk.export"}
ENGINES = {"cuda", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tokenizers"}
TRAINING = {"torch", "lightning", "onnx", "onnxscript", "safetensors"}
LIBRARIES = TRAINING | ENGINES | {"numpy", "PIL", "rich", "typer", "tensorboard", "jinja2"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module an import names, whether it is written in full or with dots."""
    package = [*FOLDERS.get(path.parent.name, path.parent.name).split(".")]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, with whether that happens only inside a function; `from a import b` gives a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            yield from ((name, id(node) in late) for name in (module, *(f"{module}.{a.name}" for a in node.names)))


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def offences(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{path.name}: {module}"
        for path in sources(folder)
        for module, _ in imports(path)
        if any(is_part_of(module, package) for package in forbidden)
    ]


# Who imports whom


@pytest.mark.parametrize("path", sources("runtime"), ids=lambda path: path.name)
def test_runtime_imports_the_standard_library_numpy_and_itself(path: Path) -> None:
    for module, late in imports(path):
        top = module.split(".")[0]
        allowed = top in sys.stdlib_module_names or top == "numpy" or is_part_of(module, "camp_sdk.runtime")
        assert allowed or (late and top in ENGINES), module


def test_camp_sdk_imports_neither_training_libraries_nor_export() -> None:
    assert offences("camp_sdk", *TRAINING, "camp_sdk.export") == []


def test_runtime_imports_neither_camp_sdk_nor_export() -> None:
    modules = {module for path in sources("runtime") for module, _ in imports(path)}
    assert {m for m in modules if m.startswith("camp_sdk") and not is_part_of(m, "camp_sdk.runtime")} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_examples_benchmarks_tests_or_a_bare_folder(folder: str) -> None:
    assert offences(folder, "examples", "benchmarks", "tests", "runtime", "export") == []


def test_the_walk_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import json\ndef f():\n    from torch import nn\n")
    assert list(imports(tmp_path / "m.py")) == [("json", False), ("torch", True), ("torch.nn", True)]


# Folders


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_folders_are_flat(folder: str) -> None:
    tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {Path(line).parent.as_posix() for line in tracked.splitlines()} == {folder}
    assert {path.name for path in (ROOT / folder).iterdir() if path.is_dir()} <= {"__pycache__"}


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_no_script_hides_a_library(library: str) -> None:
    assert not (ROOT / "export" / f"{library}.py").exists()


def test_no_script_hides_a_module_that_export_imports() -> None:
    used = {module.split(".")[0] for path in sources("export", "camp_sdk", "runtime") for module, _ in imports(path)}
    assert used & {path.stem for path in sources("export")} == set()


# Without torch

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "lightning", "onnx", "onnxscript"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""

RANK = """
import numpy as np
from camp_sdk import Retriever
images = np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32)
with Retriever(sys.argv[1]) as retriever:
    gallery = retriever.encode_images(images)
    matches = retriever.rank("a small red circle", gallery, top_k=10)
    retriever.rank(images[0], retriever.encode_texts(["a red circle", "star"]))
    retriever.explain("a red circle", images[0])
print(*(match.corpus_id for match in matches))
"""


def run_blocked(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which no training library can be found; any warning is an error."""
    command = [sys.executable, "-W", "error", "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_blocker_blocks() -> None:
    assert "torch is blocked" in run_blocked("import torch").stderr


def test_camp_sdk_imports_without_torch() -> None:
    done = run_blocked("import camp_sdk\nprint(*camp_sdk.__all__)")
    assert (done.stdout.split(), done.stderr) == (camp_sdk.__all__, "")


def test_every_module_of_camp_sdk_and_runtime_imports_without_torch() -> None:
    names = [
        f"{FOLDERS[path.parent.name]}.{path.stem}" for path in sources("camp_sdk", "runtime") if path.stem != "__init__"
    ]
    done = run_blocked("\n".join(f"import {name}" for name in names))
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_camp_sdk_loads_no_engine_and_nothing_of_the_terminal() -> None:
    dear = {"PIL", "concurrent.futures", "onnxruntime", "rich", "tokenizers", "typer"}
    done = run_blocked(f"import camp_sdk\nprint(*sorted({dear} & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_full_ranking_works_without_torch(feature_bundle: Path, feature_retriever: camp_sdk.Retriever) -> None:
    images = np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32)
    expected = [match.corpus_id for match in feature_retriever.rank("a small red circle", images, top_k=10)]
    done = run_blocked(RANK, feature_bundle)
    assert (done.stderr, done.stdout.split()) == ("", [str(index) for index in expected])


# What is public


def test_all_is_sorted() -> None:
    assert camp_sdk.__all__ == sorted(camp_sdk.__all__)


def test_all_is_what_is_public() -> None:
    public = {
        name for name, value in vars(camp_sdk).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(camp_sdk.__all__) == public


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_functions_and_classes_have_docstrings(folder: str) -> None:
    bare = [
        f"{path.name}:{node.name}"
        for path in sources(folder)
        for node in definitions(path)
        if not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("name", camp_sdk.__all__)
def test_public_methods_of_what_apps_call_have_docstrings(name: str) -> None:
    members = vars(getattr(camp_sdk, name)) if inspect.isclass(getattr(camp_sdk, name)) else {}
    callables = {n: m for n, m in members.items() if inspect.isfunction(m) or isinstance(m, (property, classmethod))}
    assert [n for n, m in callables.items() if not n.startswith("_") and not inspect.getdoc(m)] == []


# The wheel


def tracked_sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines() if line.endswith(".py")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of the tracked files, so that nothing left in the checkout can slip in."""
    copy = tmp_path_factory.mktemp("tree")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_camp_sdk_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"camp_sdk", f"camp_sdk-{version('camp-sdk')}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_typing_marker(wheel: zipfile.ZipFile) -> None:
    expected = {f"{FOLDERS[path.parent.name].replace('.', '/')}/{path.name}" for path in tracked_sources()}
    held = {name for name in wheel.namelist() if name.startswith("camp_sdk/")}
    assert held == expected | {"camp_sdk/py.typed"}
